"""Trajectory matching: training on the synthetic images moves weights to where training on the real data does.

An expert and one of its epochs s are drawn; N steps of SGD on the synthetic images lead from theta_s to theta_N, and

    L = ||theta_N - theta*_{s+E}||^2 / ||theta_s - theta*_{s+E}||^2

is minimised through all steps over the pixels and the inner learning rate.
"""

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import random_rows
from kdbench.tracks.dataset_distillation.blocks.experts import (
    ExpertRecipe,
    expert_accuracy,
    experts,
    parameter_change,
)
from kdbench.tracks.dataset_distillation.blocks.flat import FlatNetwork, unroll
from kdbench.tracks.dataset_distillation.blocks.trajectories import Synthetic, inner_batches, trajectory_loss
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet

CARD = Baseline(
    slug="mtt",
    title="Matching training trajectories",
    track="dataset_distillation",
    tasks=["images"],
    tags=["trajectory-matching"],
    reference="Cazenavette et al., CVPR 2022",
)


class MttParams(Params):
    """Experts, inner loop and updates of the images."""

    steps_fraction: float = Field(0.13, gt=0, le=1, description="share of the task's steps that is used")
    lr: float = Field(0.02, gt=0, le=10, description="of the pixels (Adam)")
    rate: float = Field(0.02, gt=0, le=10, description="first learning rate of the inner loop")
    rate_scale: float = Field(1.0, ge=0, le=100, description="speed at which that learns, relative to pixels; 0: fixed")
    inner: int = Field(8, ge=1, le=200, description="steps of the inner loop (N)")
    span: int = Field(2, ge=1, le=50, description="epochs of the expert that they stand for (E)")
    starts: int = Field(8, ge=1, le=200, description="first epochs of experts that a segment may start at (S)")
    batch: int = Field(50, ge=1, le=10000, description="synthetic images in an inner step")
    momentum: float = Field(0.0, ge=0, lt=1, description="of the inner loop")
    expert_lr: float = Field(0.02, gt=0, le=1, description="learning rate of the experts")
    expert_momentum: float = Field(0.0, ge=0, lt=1, description="momentum of the experts")


def recipe_of(params: MttParams) -> ExpertRecipe:
    """Plain experts."""
    return ExpertRecipe(lr=params.expert_lr, momentum=params.expert_momentum)


@hookimpl
def train(task, params):
    real, flip = task.split("train"), task.spec.data.flip
    ways = experts(task, recipe_of(params))
    span = min(params.span, ways[0].epochs)
    starts = min(params.starts, ways[0].epochs - span + 1)
    rows = random_rows(real.y, task.ipc, task.generator("start"))
    model, labels = Synthetic(real.x[rows], params.rate, params.rate_scale), real.y[rows]
    network, rng = FlatNetwork(task.network(task.spec.student, "init")), task.rng("segments")
    low, high = task.range

    def loss(model, batch):
        way, start = ways[int(rng.integers(len(ways)))], int(rng.integers(starts))
        theta, target = way.weights[start], way.weights[start + span]
        batches = inner_batches(model.pixels, labels, params.batch, params.inner, rng, augmented=True, flip=flip)
        reached = unroll(network, theta, batches, model.rate(), momentum=params.momentum)
        return trajectory_loss(reached[-1], theta, target)

    task.fit(
        model,
        loss,
        loader=[torch.arange(len(labels))],
        steps=task.budget.steps(params.steps_fraction),
        on_step=lambda step: model.clamp(low, high),
        lr=params.lr,
    )
    return ImageSet(model.pixels.detach(), labels)


@hookimpl
def evaluate(task, model, params):
    spent = dict(task.budget.spent)
    ways = experts(task, recipe_of(params))
    task.budget.restore(spent)  # they are counted in train already
    return task.score(model) | {
        "expert_change": parameter_change(ways),
        "expert_accuracy": expert_accuracy(task, ways),
    }
