"""The expert: 1 on the scale of normalised scores.

A scripted controller that sees the state of the simulator, or an optimal policy of a tabular process by backward
induction. Its failures in the simulator are the task's, and no method is expected to avoid them all.
"""

from kdbench import Baseline, Params, hookimpl

BASELINE = Baseline(
    slug="expert",
    title="Scripted experts and exact optima",
    track="policy",
    tasks=["*"],
    tags=["reference-point"],
)


class ExpertParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    return task.ceiling()
