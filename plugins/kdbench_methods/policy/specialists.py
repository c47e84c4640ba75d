"""One specialist for each robot: a base for the first one, a residual on it for every other one. An upper reference.

The first two stages of COMPASS, with its interaction and without its generalist.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.policy.blocks.ppo import Settings
from kdbench.tracks.policy.blocks.residual import train_base
from kdbench.tracks.policy.blocks.specialists import interaction, train_specialists, travel_times

BASELINE = Baseline(
    slug="specialists",
    title="A specialist for each robot",
    track="policy",
    tasks=["robots"],
    requires=["labels"],
    tags=["reinforcement-learning", "reference-point"],
    reference="Liu et al., 2025, arXiv 2502.16372 (first two stages)",
)


class SpecialistsParams(Params):
    """Of the two stages."""

    foresight: float = Field(0.1, ge=0, le=100, description="weight of the predicted next features")
    residual_share: float = Field(
        0.72, gt=0, le=1, description="of the limit on environment steps, all robots together"
    )
    worlds: int = Field(32, ge=1, le=4096, description="episodes side by side")
    lr: float = Field(3e-4, gt=0, le=0.1, description="learning rate at first; it follows the divergence")


@hookimpl
def train(task, params):
    base = train_base(task, foresight=params.foresight, spend="steps")
    settings = Settings(worlds=params.worlds, lr=params.lr)
    return train_specialists(task, base, env_steps=interaction(task, params.residual_share), settings=settings).policy


@hookimpl
def evaluate(task, model):
    """Official metrics and weighted travel times."""
    return task.score(model) | travel_times(task, model)
