"""The teacher with a threshold: every position of the block that is sure enough is committed, at least one.

With c_i the score of position i, all i with c_i >= gamma. Easy texts take few steps and hard ones many (Fast-dLLM).
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.policies.basic import Threshold

BASELINE = Baseline(
    slug="threshold",
    title="All tokens above a confidence",
    track="dllm",
    tasks=["*"],
    requires=["weights"],
    tags=["policy"],
    reference="Wu et al., 2025 (Fast-dLLM)",
)


class ThresholdParams(Params):
    """What is committed."""

    gamma: float = Field(0.9, gt=0, le=1, description="score from which a position is committed")
    order: Literal["confidence", "margin", "entropy", "random"] = Field("confidence", description="score of a position")


@hookimpl
def train(task, params):
    return PolicyDecoder(task.teacher(), Threshold(params.gamma, params.order, task.spec.evaluation.thresholds))
