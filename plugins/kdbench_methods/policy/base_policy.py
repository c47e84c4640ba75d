"""The base of one robot, driven by all: imitation of the first robot's demonstrations and nothing else.

It is the first stage of COMPASS alone: an encoder, a world model that predicts the next features, a head. Other bodies
answer to the same actions in other ways.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.policy.blocks.residual import Specialists, train_base
from kdbench.tracks.policy.blocks.specialists import travel_times

BASELINE = Baseline(
    slug="base_policy",
    title="The base policy of one robot, on every robot",
    track="policy",
    tasks=["robots"],
    requires=["labels"],
    tags=["imitation"],
    reference="Liu et al., 2025, arXiv 2502.16372 (first stage)",
)


class BasePolicyParams(Params):
    """Of the world model."""

    foresight: float = Field(0.1, ge=0, le=100, description="weight of the predicted next features")


@hookimpl
def train(task, params):
    return Specialists(train_base(task, foresight=params.foresight, spend="steps"), {})


@hookimpl
def evaluate(task, model):
    """Official metrics and weighted travel times."""
    return task.score(model) | travel_times(task, model)
