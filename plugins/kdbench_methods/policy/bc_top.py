"""Behaviour cloning of the best episodes: the share of the data with the highest returns, and nothing else.

Where returns are luck the best episodes are the lucky ones. Among equal returns the earlier episodes are taken, which
is a random choice: episodes are logged independently.
"""

import numpy as np

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.policy.blocks.cloning import clone
from kdbench.tracks.policy.blocks.logged import LoggedLoader

BASELINE = Baseline(
    slug="bc_top",
    title="Behaviour cloning of the best episodes",
    track="policy",
    tasks=["offline"],
    requires=["labels"],
    tags=["imitation", "offline"],
    reference="Chen et al., NeurIPS 2021, arXiv 2106.01345 (as a baseline)",
)


class BcTopParams(Params):
    """How many are kept."""

    share: float = Field(0.1, gt=0, le=1, description="of the episodes that are imitated, at least one")


def best(returns, share):
    """Rows of the ``share`` of the episodes with the highest returns (N,), earlier ones first among equals."""
    return np.argsort(-returns, kind="stable")[: max(1, round(share * len(returns)))]


@hookimpl
def train(task, params):
    problems = [problem.first(best(problem.data.returns, params.share)) for problem in task.problems()]
    size = min(task.spec.recipe.batch_size, len(problems[0].data))
    return clone(task, LoggedLoader(problems, size, task.generator("data"), task.device))
