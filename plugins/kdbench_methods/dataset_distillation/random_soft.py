"""A random real subset with soft labels: what the labels alone are worth.

The decisive control of every method with soft labels: the same labels, made by the same networks, for images that
nothing was distilled into.
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.dataset_distillation.blocks.labelling import Labelling

CARD = Baseline(
    slug="random_soft",
    title="Random real subset with soft labels",
    track="dataset_distillation",
    tasks=["images"],
    requires=["logits"],
    tags=["selection", "soft-labels"],
    reference="Qin et al., NeurIPS 2024",
)


class RandomSoftParams(Params):
    """How the labels are made."""

    labels: Literal["static", "batches"] = Field(
        "batches", description="of each image, stored once, or of every augmented and mixed batch"
    )
    members: int = Field(0, ge=0, le=64, description="networks of the committee that label, the first ones; 0: all")
    statistics: Literal["running", "batch"] = Field(
        "batch", description="what their batch normalisation uses: the training data's statistics, or the batch's"
    )
    parts: int = Field(2, ge=1, le=8, description="parts of a batch that are labelled and learned on their own")
    mix: Literal["none", "mixup", "cutmix"] = Field("cutmix", description="how images are mixed in pairs")
    alpha: float = Field(1.0, gt=0, le=10, description="of the Beta distribution of shares")
    temperature: float = Field(20.0, gt=0, le=100, description="of teacher and student in the divergence")


@hookimpl
def train(task, params):
    chosen = task.kind.random(task, task.generator("subset"))
    count = len(task.spec.committee) if params.members == 0 else min(params.members, len(task.spec.committee))
    chosen.labelling = Labelling(
        kind=params.labels,
        members=tuple(range(count)),
        temperature=params.temperature,
        mix=params.mix,
        alpha=params.alpha,
        statistics=params.statistics if params.labels == "batches" else "running",
        parts=params.parts if params.labels == "batches" else 1,
    )
    return chosen
