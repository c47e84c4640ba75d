"""AdaSPEC: a draft learns the tokens that a draft of its size can learn, and leaves the others.

Hu, Guo, Feng and Zhao, NeurIPS 2025. A small draft cannot follow its target everywhere, and what it spends on tokens
that it will never guess is lost for those it could. With p the target, two networks of the draft's size and one and the
same initialisation are trained:

1. the *reference* r, by forward KL on the training responses, and frozen;
2. the *draft* q, from the start again. At each response token of a batch

       L_q(t) = KL(p_t || q_t),   L_r(t) = KL(p_t || r_t),   D(t) = L_q(t) - L_r(t),

   and the loss is the mean of L_q over the tokens with D(t) >= quantile(D, 1 - k), taken over all response tokens of
   the batch: those where the reference shows that there is something to gain.

Decoding is lossless speculative sampling. ``evaluate`` adds acceptance, exact and counted, also on the tokens of the
target's own text that are of the kept kind at the start of training (by D of the initialisation) and on the others,
for draft and reference. The artifact ``gap.json`` has the histogram of D on such text before and after training,
``selected_again.json`` how many of the selected tokens of a fixed set are selected again at the next look.
"""

import json
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import divergence, fkl
from kdbench.tracks.decoding.blocks.acceptance import alpha_exact
from kdbench.tracks.decoding.blocks.drafts import report
from kdbench.tracks.decoding.blocks.selection import Looks, histogram, learnable, selective_loss
from kdbench.tracks.decoding.decoders.companions import WithReference
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.training.distill import distillation_loss

PAPER = Paper(
    slug="adaspec",
    title="AdaSPEC: Selective Knowledge Distillation for Efficient Speculative Decoders",
    year=2025,
    authors=["Yuezhou Hu", "Jiaxin Guo", "Xinyu Feng", "Tuo Zhao"],
    venue="NeurIPS",
    track="decoding",
    arxiv="2510.19779",
    source="code",
    tasks=["arith", "listops", "docs", "hf"],
    requires=["logits"],
    tags=["speculative", "off-policy", "token-selection"],
    claims=[
        Compare(
            metric="alpha_exact",
            subject="adaspec",
            reference="kd_fkl",
            tasks=["arith"],
            note="At as many steps, more proposals are accepted than of a draft that learns every token.",
        ),
        Compare(
            metric="alpha_exact",
            subject="kd_fkl",
            reference={"method": "adaspec", "params": {"selection": "lowest"}},
            tasks=["arith"],
            note="The tokens with the lowest gap are the wrong ones: worse than all of them.",
        ),
        Compare(
            metric="alpha_exact",
            subject="adaspec",
            reference={"method": "adaspec", "params": {"selection": "lowest"}},
            tasks=["arith"],
            note="The tokens with the largest gap are better than those with the lowest.",
        ),
        Compare(
            metric="alpha_exact",
            subject="adaspec",
            reference={"method": "adaspec", "params": {"selection": "random"}},
            tasks=["arith"],
            note="It is which tokens are kept that counts, not how many.",
        ),
        Compare(
            metric="alpha_exact",
            subject={"method": "adaspec", "params": {"k": 1.0}},
            reference="kd_fkl",
            tasks=["arith"],
            kind="noninferior",
            margin=1e-6,
            note="With every token kept it is forward KL.",
        ),
    ],
    departures=[
        "stretch, where the draft has 1/k times the steps of the reference, shortens the reference and not the draft",
        "the loss is the mean over the kept tokens; the released code divides by all response tokens (normalise: all)",
    ],
)


class AdaSpecParams(Params):
    """The selection, and how long the reference is trained."""

    k: float = Field(0.4, gt=0, le=1, description="share of the response tokens of a batch that is kept")
    selection: Literal["top", "lowest", "random"] = Field(
        "top", description="tokens that are kept: of largest gap, of lowest (ablation), or any (ablation)"
    )
    normalise: Literal["kept", "all"] = Field(
        "kept", description="the sum over kept tokens is divided by their number, or by that of all response tokens"
    )
    reference_steps: float = Field(
        1.0, gt=0, le=100, description="training of the reference, as a multiple of the task's steps"
    )
    stretch: bool = Field(
        False, description="the draft has 1/k times the steps of the reference, which therefore has k times as many"
    )
    looks: int = Field(10, ge=2, le=1000, description="looks at the selection on a fixed set during training")


def reference_loss(reference, batch, target):
    """``L_r`` (N,) on the scored tokens of a batch, whose target's logits are ``target`` (N, V); no gradient."""
    with torch.no_grad():
        return fkl(scored_logits(reference, batch).float(), target)


@torch.no_grad()
def gaps(task, draft, reference, batch):
    """``D`` (N,) on the scored tokens of a batch; no gradient."""
    was_training = draft.training
    tokens = task.tokens(draft.eval(), batch)
    draft.train(was_training)
    return fkl(tokens.student, tokens.teacher) - reference_loss(reference, batch, tokens.teacher)


@hookimpl
def train(task, params):
    steps = int(task.budget.remaining("steps"))
    reference = task.student()
    share = params.reference_steps * (params.k if params.stretch else 1.0)
    task.fit(
        reference,
        distillation_loss(task, divergence("fkl")),
        steps=max(1, round(share * steps)),
        spend="aux_steps",
        tag="reference",
    )
    reference.requires_grad_(False).eval()

    draft, chance, probing = task.student(), task.generator("selection"), task.generator("probe")
    probe, looks, every = task.target_text("val"), Looks(), max(1, steps // params.looks)

    def look(step):
        gap = gaps(task, draft, reference, probe)
        again = looks.look(step, learnable(gap, params.k, params.selection, probing))
        if again is not None:
            task.log(step, selected_again=again, mean_gap=gap.mean())
        return gap

    def loss(model, batch):
        tokens = task.tokens(model, batch)
        values = fkl(tokens.student, tokens.teacher)
        gap = values.detach() - reference_loss(reference, batch, tokens.teacher)
        kept = learnable(gap, params.k, params.selection, chance)
        return selective_loss(values, kept, params.normalise)

    def on_step(step):
        if step % every == 0:
            look(step)

    found = {"start": histogram(look(0))}
    task.fit(draft, loss, steps=steps, on_step=on_step, state=[looks])
    found["end"] = histogram(gaps(task, draft, reference, probe))
    task.artifact("gap.json").write_text(json.dumps(found, indent=1) + "\n")
    again = {"steps": looks.steps, "selected_again": looks.shares}
    task.artifact("selected_again.json").write_text(json.dumps(again, indent=1) + "\n")
    return WithReference(draft, reference, task.spec.evaluation.gamma)


@torch.no_grad()
def kinds_of_tokens(task, model, k):
    """Acceptance on the tokens of the target's own test text that a draft has most to gain on, and on the others.

    The kind is that of the start: ``D`` of the initialisation that draft and reference have in common.
    """
    text = task.target_text("test")
    kept = learnable(gaps(task, task.student(), model.reference, text), k)
    values = {"kept_share": float(kept.float().mean())}
    for role, network in (("", model.draft), ("reference_", model.reference)):
        tokens = task.tokens(network, text)
        chance = alpha_exact(tokens.student, tokens.teacher)
        values[f"{role}alpha_kept"] = float(chance[kept].mean())
        if not kept.all():
            values[f"{role}alpha_dropped"] = float(chance[~kept].mean())
    return values


@hookimpl
def evaluate(task, model, params):
    scores = task.score(model)
    return scores | report(task, model, scores["speedup"]) | kinds_of_tokens(task, model, params.k)
