"""Improving Differentiable Architecture Search via Self-Distillation (Zhu, Li, Liu and Wang, Neural Networks 2023).

DARTS mixes the operations of every edge by softmax(alpha) and alternates, first order, a step of the weights w on one
half of the training data with a step of alpha on the other. Its supernet falls into sharp minima, so that the network
that is cut out of it at the end does worse than it. SD-DARTS lets the supernet learn from its own past: of K snapshots
of (w, alpha), one taken every E steps,

    L_w = CE + lambda T^2 KL(p_vote || p_w)

where p_vote is the mean of the snapshots that agree with the majority's class of a sample, or of all where there is no
majority. The strongest operations are then kept (two edges per node), and the derived network is trained from scratch.
lambda = 0 is DARTS.

Snapshots are evaluated with their running statistics. The step of alpha normalises by its own batch and leaves the
running statistics to the step of w. The discretisation gap is the supernet's accuracy on validation images, which no
step has seen, minus that with only the kept operations at weight 1, without retraining. Sharpness is the top eigenvalue
of the Hessian and the largest increase of the loss under random changes, for w and for alpha each on its own half.
"""

import json
from copy import deepcopy
from typing import Literal

import torch
from torch import nn

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import log_softmax
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.tracks.vision.models.cells import KINDS_OF_CELLS, OPS, CellNet, Supernet, all_edges, derive, one_hot
from kdbench.training.loaders import cycle
from kdbench.training.normalization import running_statistics_kept
from kdbench.training.sharpness import loss_increase, top_eigenvalue
from kdbench.training.state import Values

PAPER = Paper(
    slug="sd_darts",
    title="Improving Differentiable Architecture Search via Self-Distillation",
    year=2023,
    authors=["Xunyu Zhu", "Jian Li", "Yong Liu", "Weiping Wang"],
    venue="Neural Networks 2023",
    arxiv="2302.05629",
    track="vision",
    source="abstract",
    tasks=["search"],
    tags=["architecture-search", "self-distillation", "sharpness"],
    claims=[
        Compare(
            metric="hessian_w",
            subject="sd_darts",
            reference={"method": "sd_darts", "params": {"weight": 0.0}},
            tasks=["digits-search", "search"],
            direction="min",
            note="self-distillation makes the supernet's minimum less sharp",
        ),
        Compare(
            metric="discretization_gap",
            subject="sd_darts",
            reference={"method": "sd_darts", "params": {"weight": 0.0}},
            tasks=["digits-search", "search"],
            direction="min",
            note="and the derived network closer to the supernet",
        ),
    ],
    departures=[
        "the distance and the choice of teacher steps and the form of the vote are our reading of the abstract",
        "the rate of alpha is 1e-2 in place of the 3e-4 of DARTS: there are hundreds of steps, not tens of thousands",
        "two cells of three nodes, the operations of NAS-Bench-201, half as many steps as the derived network has",
        "Lanczos in place of power iteration, which finds the eigenvalue of largest size, be it negative",
    ],
)


class SdDartsParams(Params):
    """Supernet, search, and the teachers that it makes of itself."""

    search: Literal["gradient", "random"] = Field("gradient", description="random: a random architecture, no search")
    weight: float = Field(1.0, ge=0, le=100, description="lambda of the divergence; 0 is DARTS")
    temperature: float = Field(2.0, gt=0, le=100, description="of the divergence")
    teachers: int = Field(3, ge=1, le=16, description="snapshots that vote")
    every: int = Field(20, ge=1, description="steps between snapshots")
    warmup: int = Field(40, ge=0, description="steps before distillation begins")
    vote: Literal["majority", "mean"] = Field("majority", description="mean: all snapshots count for every sample")
    alpha_kd: bool = Field(False, description="the step of alpha has the divergence, too")
    average: float = Field(0.0, ge=0, lt=1, description="decay of averages of w and alpha that end the search; 0: none")
    steps: int | None = Field(
        None, ge=2, description="of the search; null: half the task's limit, which the derived network has whole"
    )
    channels: int = Field(6, ge=2, le=64, description="of the first cell")
    layers: int = Field(2, ge=1, le=20, description="cells of the supernet and of the derived network")
    nodes: int = Field(3, ge=1, le=7, description="nodes per cell")
    lr: float = Field(0.05, gt=0, description="peak rate of w (SGD, cosine)")
    weight_decay: float = Field(3e-4, ge=0, description="of w")
    alpha_lr: float = Field(1e-2, gt=0, description="rate of alpha (Adam)")
    alpha_decay: float = Field(1e-3, ge=0, description="weight decay of alpha")
    images: int = Field(64, ge=2, description="images of each half that sharpness is measured on")
    radius: float = Field(1e-2, gt=0, description="length of the random changes, relative to the weights' norm")


# --- the search -------------------------------------------------------------------------------------------------------


class Alphas(nn.Module):
    """Logits of the mixing weights, (edges, operations) for normal and reduction cells."""

    def __init__(self, nodes, scale=1e-3):
        super().__init__()
        shape = (len(all_edges(nodes)), len(OPS))
        self.normal, self.reduce = (nn.Parameter(scale * torch.randn(shape)) for _ in KINDS_OF_CELLS)

    def forward(self):
        return self.normal.softmax(-1), self.reduce.softmax(-1)


class Snapshots(nn.Module):
    """A ring of earlier states of supernet and alphas, frozen and in eval mode."""

    def __init__(self, supernet, alphas, count):
        super().__init__()
        self.nets = nn.ModuleList(deepcopy(supernet) for _ in range(count))
        self.alphas = nn.ModuleList(deepcopy(alphas) for _ in range(count))
        self.requires_grad_(False).eval()
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def __len__(self):
        return min(int(self.taken), len(self.nets))

    def take(self, supernet, alphas):
        """The present state replaces the oldest one."""
        slot = int(self.taken) % len(self.nets)
        self.nets[slot].load_state_dict(supernet.state_dict())
        self.alphas[slot].load_state_dict(alphas.state_dict())
        self.taken += 1

    @torch.no_grad()
    def log_probs(self, x, temperature):
        """(k, B, C) of the k snapshots there are."""
        pairs = zip(self.nets[: len(self)], self.alphas[: len(self)], strict=True)
        return torch.stack([log_softmax(net.mix(x, alphas()), temperature) for net, alphas in pairs])


def vote(log_probs, how="majority"):
    """Log of the voted probabilities; (K, B, C) to (B, C).

    The mean over the snapshots whose largest class is that of more than half of them; over all where there is no such
    class, and with ``how="mean"``.
    """
    winners = log_probs.argmax(-1)
    counts = nn.functional.one_hot(winners, log_probs.shape[-1]).sum(0)
    most, favourite = counts.max(-1)
    everybody = (2 * most <= len(log_probs)) | (how == "mean")
    counted = (winners == favourite) | everybody
    kept = log_probs.masked_fill(~counted.unsqueeze(-1), -torch.inf)
    return kept.logsumexp(0) - counted.sum(0).log().unsqueeze(-1)


def halves(task):
    """Positions of the labelled images that w and alpha learn from."""
    order = torch.randperm(len(task.split("labeled")), generator=task.generator("halves"))
    return order[: len(order) // 2], order[len(order) // 2 :]


def make_supernet(task, params):
    with task.seeded("supernet"):
        net = Supernet(
            params.channels, params.layers, params.nodes, num_classes=task.num_classes, size=task.spec.data.size
        )
        return net.to(task.device), Alphas(params.nodes).to(task.device)


def search(task, params):
    """The supernet and the alphas after the bilevel search."""
    net, alphas = make_supernet(task, params)
    w_rows, alpha_rows = halves(task)
    alpha_batches = cycle(task.train_loader("labeled", indices=alpha_rows, purpose="alpha"))
    optimizer = torch.optim.Adam(
        alphas.parameters(), lr=params.alpha_lr, betas=(0.5, 0.999), weight_decay=params.alpha_decay
    )
    snapshots = Snapshots(net, alphas, params.teachers) if params.weight else None
    averaged = deepcopy(alphas).requires_grad_(False)
    now = Values(step=0)
    steps = params.steps or max(2, task.budget.steps(0.5))

    def distilled(logits, x):
        """lambda T^2 KL to the vote, or None before there is one."""
        if snapshots is None or now.step < params.warmup or not len(snapshots):
            return None
        target = params.temperature * vote(snapshots.log_probs(x, params.temperature), params.vote)
        return params.weight * kd_kl(logits, target, params.temperature)

    def loss(model, batch):
        logits = model.mix(batch.x, tuple(each.detach() for each in alphas()))
        divergence = distilled(logits, batch.x)
        parts = {"ce": cross_entropy(logits, batch.y)}
        return parts if divergence is None else parts | {"kd": divergence}

    def alpha_step():
        batch = next(alpha_batches)
        with running_statistics_kept(net):
            logits = net.mix(batch.x, alphas())
        total = cross_entropy(logits, batch.y)
        divergence = distilled(logits, batch.x) if params.alpha_kd else None
        gradients = torch.autograd.grad(total if divergence is None else total + divergence, list(alphas.parameters()))
        for parameter, gradient in zip(alphas.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    def on_step(step):
        alpha_step()
        now.step = step
        if snapshots is not None and step % params.every == 0:
            snapshots.take(net, alphas)
        with torch.no_grad():
            for mean, value in zip(averaged.parameters(), alphas.parameters(), strict=True):
                mean.lerp_(value, 1 - params.average)

    task.budget.spend("aux_steps", steps)  # those of alpha; fit charges those of w
    result = task.fit(
        net,
        loss,
        loader=task.train_loader("labeled", indices=w_rows),
        steps=steps,
        spend="aux_steps",
        ema=params.average or None,
        on_step=on_step,
        state=[now, alphas, averaged, optimizer, alpha_batches, *([] if snapshots is None else [snapshots])],
        tag="search",
        optimizer="sgd",
        lr=params.lr,
        schedule="cosine",
        weight_decay=params.weight_decay,
        clip=5.0,
    )
    return (result.ema, averaged) if params.average else (net, alphas)


# --- what the search left ---------------------------------------------------------------------------------------------


def measures(task, params, net, alphas, genotype):
    """Discretisation gap and sharpness of a supernet in eval mode; nothing of the test data."""
    net.eval()
    val, (w_rows, alpha_rows) = task.split("val"), halves(task)
    labelled, generator = task.split("labeled"), task.generator("sharpness")
    kept = tuple(one_hot(genotype[kind], params.nodes).to(task.device) for kind in KINDS_OF_CELLS)

    def accuracy(weights):
        with torch.no_grad():
            return float((net.mix(val.x, weights).argmax(1) == val.y).double().mean())

    whole, cut = accuracy(tuple(each.detach() for each in alphas())), accuracy(kept)
    values = {"supernet_val_top1": whole, "discretized_val_top1": cut, "discretization_gap": whole - cut}
    for name, rows, module in (("w", w_rows, net), ("alpha", alpha_rows, alphas)):
        batch = labelled.batch(rows[: params.images].to(task.device))
        parameters = list(module.requires_grad_(True).parameters())

        def loss(batch=batch):
            return cross_entropy(net.mix(batch.x, alphas()), batch.y)

        values[f"hessian_{name}"] = top_eigenvalue(loss, parameters, generator)
        values[f"loss_increase_{name}"] = loss_increase(loss, parameters, generator, radius=params.radius)
    none = sum(int((each.argmax(-1) == OPS.index("none")).sum()) for each in (alphas.normal, alphas.reduce))
    return values | {"none_edges": float(none)}


@hookimpl
def train(task, params):
    if params.search == "random":
        with task.seeded("random-architecture"):
            alphas = Alphas(params.nodes, scale=1.0)
    else:
        net, alphas = search(task, params)
    weights = zip(KINDS_OF_CELLS, alphas(), strict=True)
    genotype = {kind: derive(each, params.nodes) for kind, each in weights}
    found = {} if params.search == "random" else measures(task, params, net, alphas, genotype)
    found["skip_ops"] = float(sum(op == "skip" for genes in genotype.values() for op, _ in genes))
    made = {
        "genotype": genotype,
        "mixing": dict(zip(KINDS_OF_CELLS, (each.tolist() for each in alphas()), strict=True)),
        "operations": OPS,
        "measures": found,
    }
    task.artifact("search.json").write_text(json.dumps(made))
    with task.seeded("init"):
        derived = CellNet(
            params.channels, params.layers, genotype, num_classes=task.num_classes, size=task.spec.data.size
        ).to(task.device)
    loader = task.train_loader("labeled")
    task.fit(derived, lambda model, batch: cross_entropy(model(batch.x), batch.y), loader=loader)
    return derived


@hookimpl
def evaluate(task, model):
    """Accuracy of the derived network; what the search left was measured before it was trained."""
    return task.score(model) | json.loads(task.artifact("search.json").read_text())["measures"]
