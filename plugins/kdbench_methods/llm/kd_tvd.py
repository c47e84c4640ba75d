"""Token-level distillation by the total variation distance (Wen et al., 2023).

0.5 sum |p - q| at every scored token: symmetric and bounded, so that no single token dominates.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.training.distill import train_with_divergence

BASELINE = Baseline(
    slug="kd_tvd",
    title="f-Divergence Minimization for Sequence-Level Knowledge Distillation (total variation)",
    track="llm",
    tasks=["*"],
    requires=["logits"],
    tags=["off-policy", "divergence"],
    reference="Wen, Li, Du, Mou; ACL 2023, arXiv 2307.15190",
)


class TotalVariationParams(Params):
    """Weight of the divergence and its temperature."""

    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the hard labels have the rest")
    temperature: float = Field(
        1.0, gt=0, le=100, description="divides the logits of both; the loss has its square as factor"
    )


@hookimpl
def train(task, params):
    loss = divergence("tvd")
    return train_with_divergence(task, loss, kd_ratio=params.kd_ratio, temperature=params.temperature)
