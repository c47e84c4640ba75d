"""Token-level distillation by the generalised Jensen-Shannon divergence, on the data.

beta KL(p || M) + (1 - beta) KL(q || M) with M = beta p + (1 - beta) q; beta = 0 is forward KL and beta = 1 reverse KL.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.training.distill import train_with_divergence

BASELINE = Baseline(
    slug="kd_jsd",
    title="Token-level distillation by the generalised Jensen-Shannon divergence",
    track="llm",
    tasks=["*"],
    requires=["logits"],
    tags=["off-policy", "divergence"],
    reference="Agarwal et al.; ICLR 2024, arXiv 2306.13649 (section 2); Wen et al.; ACL 2023",
)


class JensenShannonParams(Params):
    """Mixture, weight of the divergence and its temperature."""

    beta: float = Field(
        0.5, ge=0, le=1, description="weight of the teacher in the mixture; 0: forward KL, 1: reverse KL"
    )
    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the hard labels have the rest")
    temperature: float = Field(
        1.0, gt=0, le=100, description="divides the logits of both; the loss has its square as factor"
    )


@hookimpl
def train(task, params):
    loss = divergence("jsd", beta=params.beta)
    return train_with_divergence(task, loss, kd_ratio=params.kd_ratio, temperature=params.temperature)
