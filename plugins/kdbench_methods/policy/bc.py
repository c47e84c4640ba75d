"""Behaviour cloning: the expert's actions by regression, or by likelihood where actions are discrete.

The student answers an observation with the expert's action, and is trained by the mean squared error (the maximum of a
Gaussian likelihood of fixed width); in tabular families by the negative log-likelihood. It has one answer to each
observation: where experts go left or right, it is between them.
"""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.policy.blocks.cloning import clone

BASELINE = Baseline(
    slug="bc",
    title="Behaviour cloning",
    track="policy",
    tasks=["nav", "robots", "gym", "desk", "offline"],
    requires=["labels"],
    tags=["imitation"],
    reference="Pomerleau, Neural Computation 1991",
)


class BcParams(Params):
    """None."""


@hookimpl
def train(task):
    return clone(task)
