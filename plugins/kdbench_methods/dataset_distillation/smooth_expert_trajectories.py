"""AST: trajectories are matched with smooth experts of high quality.

Experts learn with momentum, weight decay, a loss that is multiplied by 0.5, 0.55, ... 1 (clipping loss) and a gradient
penalty, so that their weights change less from epoch to epoch. Synthetic images start as the real ones nearest to
k-means centroids of the experts' logits. In an outer step an expert and a start epoch s < S are drawn, the kernels of
the start weights are perturbed, w <- w + d / ||d||_F * w with d ~ N(0, 1), and N steps of SGD with momentum follow,
whose loss is multiplied by

    log_5(s - S/2 + 8) if s >= S/2,    1 / log_5(S/2 - s + 8) otherwise    (balanced inner loop),

and the distances to the expert are matched at its next epochs, too:

    L = ||theta_N - theta*_{s+E}||^2 / ||theta_0 - theta*_{s+E}||^2
        + sum_{i=1}^{E-1} a_i ||theta_{i floor(N/E)} - theta*_{s+i}||^2 / ||theta_0 - theta*_{s+i}||^2.
"""

import math
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import by_class, nearest_to_centroids, random_rows
from kdbench.tracks.dataset_distillation.blocks.experts import (
    ExpertRecipe,
    expert_accuracy,
    experts,
    parameter_change,
)
from kdbench.tracks.dataset_distillation.blocks.flat import FlatNetwork, unroll
from kdbench.tracks.dataset_distillation.blocks.trajectories import Synthetic, inner_batches, trajectory_loss
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet

PAPER = Paper(
    slug="smooth_expert_trajectories",
    title="Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories",
    authors=["Jiyuan Shen", "Wenzhuo Yang", "Kwok-Yan Lam"],
    year=2023,
    track="dataset_distillation",
    arxiv="2310.10541",
    source="code",
    tasks=["images"],
    tags=["trajectory-matching"],
    claims=[
        Compare(
            metric="expert_change",
            subject="smooth_expert_trajectories",
            reference={"method": "smooth_expert_trajectories", "params": {"clip_start": 1.0, "penalty": 0.0}},
            tasks=["images"],
            direction="min",
            note="Clipping loss and gradient penalty make experts change less from epoch to epoch.",
        ),
        Compare(
            metric="accuracy",
            subject="smooth_expert_trajectories",
            reference={"method": "mtt", "params": {"expert_momentum": 0.9, "expert_lr": 0.01}},
            tasks=["images"],
            note="Better than trajectory matching with plain experts, both learning with momentum.",
        ),
    ],
    departures=[
        "pixels and inner learning rate are updated by Adam, whose step does not depend on the scale of gradients",
        "the augmentation is the track's, shifts and small rotations, and images are normalised without ZCA",
        "8 experts of 12 epochs instead of 100 of 50, and a few hundred updates: the size of the task",
    ],
)


class SmoothParams(Params):
    """Experts, inner loop and updates of the images."""

    steps_fraction: float = Field(0.13, gt=0, le=1, description="share of the task's steps that is used")
    lr: float = Field(0.02, gt=0, le=10, description="of the pixels (Adam)")
    rate: float = Field(0.01, gt=0, le=10, description="first learning rate of the inner loop")
    rate_scale: float = Field(1.0, ge=0, le=100, description="speed at which that learns, relative to pixels; 0: fixed")
    inner: int = Field(8, ge=1, le=200, description="steps of the inner loop (N)")
    span: int = Field(2, ge=1, le=50, description="epochs of the expert that they stand for (E)")
    starts: int = Field(8, ge=1, le=200, description="first epochs of experts that a segment may start at (S)")
    batch: int = Field(50, ge=1, le=10000, description="synthetic images in an inner step")
    momentum: float = Field(0.9, ge=0, lt=1, description="of the inner loop and of the experts")
    expert_lr: float = Field(0.01, gt=0, le=1, description="learning rate of the experts")
    weight_decay: float = Field(1e-3, ge=0, le=1, description="of the experts")
    clip_start: float = Field(0.5, ge=0.05, le=1, description="factor of the experts' loss in the first epoch; 1: none")
    penalty: float = Field(2.0, ge=0, le=100, description="weight of the experts' gradient penalty")
    decay: float = Field(0.6, gt=0, le=1, description="factor of the experts' learning rate from the middle on")
    init: Literal["representative", "random"] = Field("representative", description="which real images come first")
    perturbation: float = Field(1.0, ge=0, le=100, description="of the start weights' kernels; 0: none")
    balanced: bool = Field(True, description="whether the inner loss has a factor by the start epoch")
    between: Literal["none", "constant", "adaptive"] = Field(
        "constant", description="weight of epochs between: none are matched, 1, or i/E"
    )


def recipe_of(params: SmoothParams) -> ExpertRecipe:
    """Smooth experts."""
    return ExpertRecipe(
        lr=params.expert_lr,
        momentum=params.momentum,
        weight_decay=params.weight_decay,
        clip_start=params.clip_start,
        penalty=params.penalty,
        decay=params.decay,
    )


def balance_factor(start: int, starts: int) -> float:
    """Factor of the inner loss at a start epoch: below 1 in the first half of the ``starts`` epochs, above 1 later."""
    ahead = start - starts / 2
    return math.log(ahead + 8, 5) if ahead >= 0 else 1 / math.log(8 - ahead, 5)


def perturbed(network: FlatNetwork, theta: torch.Tensor, scale: float, draws: torch.Generator) -> torch.Tensor:
    """Weights (P,) whose convolution kernels w are w + scale d / ||d||_F * w; biases and linear layers are as
    before."""
    if scale == 0:
        return theta
    parts = dict(network.parts(theta))
    for name in network.kernels:
        noise = torch.randn(parts[name].shape, generator=draws).to(theta)
        parts[name] = parts[name] + scale * noise / noise.norm() * parts[name]
    return network.joined(parts)


def matching_loss(
    reached: list[torch.Tensor], theta: torch.Tensor, way: torch.Tensor, start: int, span: int, between: str
) -> torch.Tensor:
    """Distances to the expert's weights (epochs + 1, P) after ``span`` epochs and, by ``between``, at those before."""
    total, every = trajectory_loss(reached[-1], theta, way[start + span]), len(reached) // span
    if between == "none" or every == 0:
        return total
    for i in range(1, span):
        weight = i / span if between == "adaptive" else 1.0
        total = total + weight * trajectory_loss(reached[i * every - 1], theta, way[start + i])
    return total


@torch.no_grad()
def representative_rows(task, network: FlatNetwork, ways, rng):
    """Real images nearest to the k-means centroids of an expert's logits, for each class."""
    real, theta = task.split("train"), ways[int(rng.integers(len(ways)))].weights[-1]
    logits = torch.cat([network(theta, x) for x in real.x.split(500)])
    seed = int(rng.integers(2**31))
    return by_class(real.y, task.ipc, lambda own, count: own[nearest_to_centroids(logits[own], count, seed)])


@hookimpl
def train(task, params):
    real, flip = task.split("train"), task.spec.data.flip
    ways, network = experts(task, recipe_of(params)), FlatNetwork(task.network(task.spec.student, "init"))
    span = min(params.span, ways[0].epochs)
    starts = min(params.starts, ways[0].epochs - span + 1)
    rng, draws = task.rng("segments"), task.generator("perturbation")
    if params.init == "random":
        rows = random_rows(real.y, task.ipc, task.generator("start"))
    else:
        rows = representative_rows(task, network, ways, task.rng("clusters"))
    model, labels = Synthetic(real.x[rows], params.rate, params.rate_scale), real.y[rows]
    low, high = task.range

    def inner(theta, start, steps, model, graph=True):
        factor = balance_factor(start, starts) if params.balanced else 1.0
        batches = inner_batches(model.pixels, labels, params.batch, steps, rng, augmented=True, flip=flip)
        return unroll(
            network, theta, batches, model.rate(), momentum=params.momentum, factor=factor, create_graph=graph
        )

    def loss(model, batch):
        way, start = ways[int(rng.integers(len(ways)))].weights, int(rng.integers(starts))
        theta = perturbed(network, way[start], params.perturbation, draws)
        return matching_loss(inner(theta, start, params.inner, model), theta, way, start, span, params.between)

    task.fit(
        model,
        loss,
        loader=[torch.arange(len(labels))],
        steps=task.budget.steps(params.steps_fraction),
        on_step=lambda step: model.clamp(low, high),
        lr=params.lr,
    )
    # all of an expert's training at once, in as many steps as its segments have
    way, steps = ways[0], max(1, params.inner * ways[0].epochs // span)
    theta = inner(way.weights[0], 0, steps, model, graph=False)[-1].detach()
    grand = trajectory_loss(theta, way.weights[0], way.weights[-1])
    facts = {"grand_loss": float(grand), "inner_rate": float(model.rate().detach())}
    return ImageSet(model.pixels.detach(), labels, facts=facts)


@hookimpl
def evaluate(task, model, params):
    spent = dict(task.budget.spent)
    ways = experts(task, recipe_of(params))
    task.budget.restore(spent)  # they are counted in train already
    own = {"expert_change": parameter_change(ways), "expert_accuracy": expert_accuracy(task, ways)}
    return task.score(model) | model.facts | own
