"""Token-level distillation by reverse KL, on the data.

KL(q || p) at every scored token: the student seeks the teacher's modes. The gradient flows through both occurrences
of q. On samples of the student it is the loss of ``gkd`` with beta = 1.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.training.distill import train_with_divergence

BASELINE = Baseline(
    slug="kd_rkl",
    title="Token-level distillation by reverse KL",
    track="llm",
    tasks=["*"],
    requires=["logits"],
    tags=["off-policy", "divergence"],
    reference="compared with since Gu et al.; ICLR 2024, arXiv 2306.08543",
)


class ReverseKlParams(Params):
    """Weight of the divergence and its temperature."""

    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the hard labels have the rest")
    temperature: float = Field(
        1.0, gt=0, le=100, description="divides the logits of both; the loss has its square as factor"
    )


@hookimpl
def train(task, params):
    loss = divergence("rkl")
    return train_with_divergence(task, loss, kd_ratio=params.kd_ratio, temperature=params.temperature)
