"""The teacher with a factor: the surer the block, the more positions are committed at once.

With c_(1) >= c_(2) >= ... the scores of the block, the largest n with (n + 1)(1 - c_(n)) < f: a bound under which the
most probable tokens of the product of marginals are those of the joint distribution, too (Fast-dLLM, theorem 1).
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.policies.basic import Factor

BASELINE = Baseline(
    slug="factor",
    title="As many tokens as their confidence allows together",
    track="dllm",
    tasks=["*"],
    requires=["weights"],
    tags=["policy"],
    reference="Wu et al., 2025 (Fast-dLLM)",
)


class FactorParams(Params):
    """What is committed."""

    factor: float = Field(1.0, gt=0, le=100, description="bound on (n + 1)(1 - c_n)")
    order: Literal["confidence", "margin", "entropy", "random"] = Field("confidence", description="score of a position")


@hookimpl
def train(task, params):
    return PolicyDecoder(task.teacher(), Factor(params.factor, params.order, task.spec.evaluation.factors))
