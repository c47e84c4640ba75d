"""Token-level distillation by adaptive KL (Wu et al., 2025).

Forward and reverse KL, mixed token by token: forward KL weighs as much as the head of the teacher's distribution
still differs, reverse KL as much as its tail does.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.training.distill import train_with_divergence

BASELINE = Baseline(
    slug="kd_akl",
    title="Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models",
    track="llm",
    tasks=["*"],
    requires=["logits"],
    tags=["off-policy", "divergence"],
    reference="Wu, Tao, Wang, Yang, Zhao, Wong; COLING 2025, arXiv 2404.02657",
)


class AdaptiveKlParams(Params):
    """Boundary of head and tail, weight of the divergence and its temperature."""

    mu: float = Field(0.5, gt=0, lt=1, description="cumulative teacher probability at which the tail begins")
    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the hard labels have the rest")
    temperature: float = Field(
        1.0, gt=0, le=100, description="divides the logits of both; the loss has its square as factor"
    )


@hookimpl
def train(task, params):
    loss = divergence("akl", mu=params.mu)
    return train_with_divergence(task, loss, kd_ratio=params.kd_ratio, temperature=params.temperature)
