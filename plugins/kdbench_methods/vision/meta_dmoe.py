"""Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from Mixture-of-Experts (Zhong et al., NeurIPS 2022).

A student meets a domain that it was never trained on, with a handful of its images and no labels. Experts of clusters
of the source domains, combined by an aggregator, say where the student's features should be; one step there adapts it,
and everything is trained so that this step helps.

1. One expert per cluster of domains, trained on it and frozen. The aggregator, a transformer over the experts' features
   of an image as tokens, gives r(x); it is first trained with labels through a head of its own. The student is first
   trained on all source data.
2. Episodes (algorithm 1): a batch of one domain is split into support and query. The expert of that domain's own
   cluster is left out, as a domain not seen before has none. Without labels, for the feature extractor alone,

       theta' = theta - ilr grad mean |F_theta(x_s) - r(x_s)|^2,      L = CE(head(F_theta'(x_q)), y_q)

   and L is minimised over student, head and aggregator through the inner step, by an optimizer each. Batch
   normalisation is in eval mode throughout.
3. Test: for every unseen domain, one batch of its images, all experts, one inner step from the same theta.

The score is that of the adapted student, domain by domain. Evaluation adds the accuracies on unseen domains of what it
is compared with, the gain of adaptation, the drop of the inner loss, and the FLOPs of one adaptation.
"""

import json
from typing import Literal

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.logits import cross_entropy
from kdbench.tracks.vision.domains import Episodes, clusters_of, source_domains, unseen_domains
from kdbench.tracks.vision.models.adaptive import Mixture, penult, without_head
from kdbench.training.inner import call_with, inner_step
from kdbench.training.schedules import Watch

PAPER = Paper(
    slug="meta_dmoe",
    title="Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from Mixture-of-Experts",
    year=2022,
    authors=["Tao Zhong", "Zhixiang Chi", "Li Gu", "Yang Wang", "Yuanhao Yu", "Jin Tang"],
    venue="NeurIPS 2022",
    arxiv="2210.03885",
    url="https://github.com/n3il666/Meta-DMoE",
    track="vision",
    source="code",
    tasks=["multidomain"],
    tags=["meta-learning", "domain-shift", "features", "multi-teacher"],
    claims=[
        Compare(
            metric="adaptation_gain",
            subject="meta_dmoe",
            reference=0.0,
            tasks=["multidomain-pseudo"],
            note="the adapted student is better on unseen domains than the same student before",
        ),
        Compare(
            metric="top1",
            subject="meta_dmoe",
            reference={"method": "meta_dmoe", "params": {"meta": False}},
            tasks=["multidomain-pseudo"],
            kind="noninferior",
            note="not worse than the same distillation step without meta-learning",
        ),
    ],
    departures=[
        "step sizes are larger than the paper's 1e-6 to 1e-3, which are for pre-trained networks",
        "the experts' features are projected to the student's width inside of the aggregator",
        "clusters are consecutive domains in place of random ones",
    ],
)


class MetaDmoeParams(Params):
    """Experts, aggregator, episodes, and how to adapt."""

    experts: int = Field(4, ge=2, le=50, description="clusters of source domains, at most one per domain")
    expert: str = Field("rn(8,1)", description="architecture of the experts")
    expert_steps: float = Field(0.3, gt=0, le=10, description="steps of each expert, as a multiple of the task's limit")
    aggregator_steps: float = Field(0.6, ge=0, le=10, description="steps of the aggregator with labels, likewise")
    heads: int = Field(
        4, ge=1, le=64, description="attention heads of the aggregator; a divisor of the student's width"
    )
    depth: int = Field(1, ge=1, le=12, description="layers of the aggregator")
    dropout: float = Field(0.1, ge=0, lt=1, description="in the aggregator while it is trained with labels")
    episodes: float = Field(0.4, gt=0, lt=1, description="share of the student's steps that are episodes")
    support: int = Field(24, ge=1, le=4096, description="images that an inner step sees; fewer where a domain is small")
    query: int = Field(40, ge=1, le=4096, description="images that an outer step sees, likewise")
    ilr: float = Field(0.1, ge=0, le=100, description="inner step size")
    slr: float = Field(3e-4, ge=0, le=1, description="outer learning rate of the student, of Adam")
    tlr: float = Field(3e-4, ge=0, le=1, description="outer learning rate of the aggregator, of Adam")
    meta: bool = Field(True, description="train by episodes; else the student is trained on the source data alone")
    second_order: bool = Field(
        True, description="differentiate through the inner gradient; else the aggregator learns nothing in episodes"
    )
    exclude_own: bool = Field(True, description="leave the expert of an episode's own cluster out")
    adapt: Literal["distill", "none", "bn", "entropy", "ensemble", "aggregator"] = Field(
        "distill", description="what is done with an unseen domain's images; the paper's is distill"
    )


MODES = ("none", "bn", "entropy", "ensemble", "aggregator", "distill")


def leave_out(tokens, cluster):
    """(B, M, E) tokens without that of one expert: (B, M - 1, E)."""
    return torch.cat([tokens[:, :cluster], tokens[:, cluster + 1 :]], 1)


def outer_loss(model, batch, tokens, params):
    """Query cross-entropy after the inner step towards the aggregated ``tokens`` of the support images; both losses."""
    parameters, s = without_head(model.student), batch.support
    inner = model.inner_loss(parameters, batch.x[:s], model.aggregator(tokens))
    moved = inner_step(parameters, inner, params.ilr, second_order=params.second_order)
    features = call_with(model.student, moved, penult, batch.x[s:])
    return cross_entropy(model.head()(features), batch.y[s:]), inner


def fit_experts(task, model, clusters, domains, steps):
    """Each expert on the images of its own cluster."""
    for number, (expert, cluster) in enumerate(zip(model.experts, clusters, strict=True)):
        rows = torch.cat([domains[z] for z in cluster])
        task.fit(
            expert,
            lambda net, batch: cross_entropy(net(batch.x), batch.y),
            loader=task.train_loader(indices=rows),
            steps=steps,
            spend="aux_steps",
            tag=f"expert{number}",
        )


@hookimpl
def train(task, params):
    split, domains = task.split("train"), source_domains(task)
    clusters = clusters_of(len(domains), params.experts)
    model = build(task, params, len(clusters))
    steps = task.budget.steps()
    fit_experts(task, model, clusters, domains, max(1, round(params.expert_steps * steps)))
    model.experts.requires_grad_(False).eval()
    table = torch.cat([model.tokens(part.x) for part in split.batches(500)])  # nothing is augmented

    def tokens_of(batch):
        return table[batch.index]  # identities of training images are their positions

    task.fit(
        model.aggregator,
        lambda net, batch: cross_entropy(net.fc(net(tokens_of(batch))), batch.y),
        loader=task.train_loader(augment=False),
        steps=max(1, round(params.aggregator_steps * steps)),
        spend="aux_steps",
        optimizer="adam",
        lr=3e-3,
        weight_decay=0.0,
        tag="aggregator",
    )
    episodes = min(steps - 1, max(1, round(params.episodes * steps))) if params.meta else 0
    task.fit(
        model.student,
        lambda net, batch: cross_entropy(net(batch.x), batch.y),
        loader=task.train_loader(),
        steps=steps - episodes,
        tag="pretrain",
    )
    if params.meta:
        meta_train(task, model, params, domains, clusters, tokens_of, episodes)
    return model


def build(task, params, experts):
    """The untrained mixture; its student starts as that of every other method."""
    width = task.student().head().in_features
    if width % params.heads:
        raise UsageError(f"heads = {params.heads} does not divide the student's width {width}")
    with task.seeded("mixture"):
        model = Mixture(
            student=task.spec.student.arch,
            expert=params.expert,
            experts=experts,
            heads=params.heads,
            depth=params.depth,
            dropout=params.dropout,
            ilr=params.ilr,
            mode=params.adapt,
            support=params.support,
            num_classes=task.num_classes,
            size=task.spec.data.size,
        )
    model.student.load_state_dict(task.student().state_dict())
    return model.to(task.device)


def meta_train(task, model, params, domains, clusters, tokens_of, episodes):
    """Step 2 of the module's docstring."""
    cluster_of = {z: number for number, cluster in enumerate(clusters) for z in cluster}
    optimizer = torch.optim.Adam(model.aggregator.parameters(), lr=params.tlr)
    watch = Watch(task, episodes, "episode/")
    model.eval()  # the aggregator without dropout

    def loss(student, batch):
        student.eval()
        tokens = tokens_of(batch)[: batch.support]
        if params.exclude_own:
            tokens = leave_out(tokens, cluster_of[batch.which])
        outer, inner = outer_loss(model, batch, tokens, params)
        student.train()  # as the training loop has it
        watch.add(inner=inner)
        return outer

    def on_step(step):
        optimizer.step()
        optimizer.zero_grad()
        watch(step)

    task.fit(
        model.student,
        loss,
        loader=Episodes(task.split("train"), domains, params.support, params.query, task.generator("episodes")),
        steps=episodes,
        on_step=on_step,
        state=[model.aggregator, optimizer, watch],
        optimizer="adam",
        lr=params.slr,
        schedule="constant",
        weight_decay=0.0,
        warmup=0.0,
        tag="episode",
    )


def adaptation(task, model, split):
    """Accuracy by mode on one domain; inner loss before and after, and FLOPs, of the paper's step."""
    support, own, values = task.support_of(split, model.support), model.mode, {}
    for mode in MODES:
        model.mode = mode
        with FlopCounterMode(display=False) as flops:
            adapted = model.adapted(support)
        logits = task.predict(adapted, split.x)
        values[f"{mode}_top1"] = float((logits.argmax(1) == split.y).float().mean())
        values[f"{mode}_flops"] = flops.get_total_flops()
        if mode == "distill":
            with torch.no_grad():
                target = model.aggregator(model.tokens(support))
                before, after = (F.mse_loss(penult(net, support), target) for net in (model.student, adapted))
            values |= {"inner_before": float(before), "inner_after": float(after)}
    model.mode = own
    return values


@hookimpl
def evaluate(task, model):
    model.eval()
    table = {name: adaptation(task, model, split) for name, split in unseen_domains(task).items()}
    task.artifact("domains.json").write_text(json.dumps(table))
    held = [values for name, values in table.items() if name.startswith("held_out_")]
    measured = {}
    for mode in MODES:
        each = [values[f"{mode}_top1"] for values in held]
        measured |= {f"{mode}_top1": sum(each) / len(each), f"{mode}_worst_top1": min(each)}
    before, after = (sum(values[f"inner_{when}"] for values in table.values()) for when in ("before", "after"))
    return (
        task.score(model)
        | measured
        | {
            "adaptation_gain": measured["distill_top1"] - measured["none_top1"],
            "adaptation_gain_all": sum(v["distill_top1"] - v["none_top1"] for v in table.values()) / len(table),
            "inner_loss_drop": 1 - after / before if before > 0 else 0.0,
            "adaptation_mflops": held[0]["distill_flops"] / 1e6,
        }
    )
