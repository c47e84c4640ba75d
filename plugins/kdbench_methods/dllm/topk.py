"""The teacher, k tokens per step: the k positions with the largest scores are committed at once.

Scores are the probability of the prediction, its margin before the second token, one minus the normalised entropy, or
random numbers. As if the tokens of a step did not depend on each other.
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.policies.basic import TopK

BASELINE = Baseline(
    slug="topk",
    title="A fixed number of tokens per step",
    track="dllm",
    tasks=["*"],
    requires=["weights"],
    tags=["policy"],
    reference="Nie et al., 2025 (LLaDA); Kim et al., 2025 (margin)",
)


class TopkParams(Params):
    """What is committed."""

    k: int = Field(2, ge=1, le=4096, description="positions of a step")
    order: Literal["confidence", "margin", "entropy", "random"] = Field("confidence", description="score of a position")


@hookimpl
def train(task, params):
    return PolicyDecoder(task.teacher(), TopK(params.k, params.order))
