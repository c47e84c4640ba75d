"""Token-level distillation by skewed forward KL, on the data (Ko et al., 2024, without their sampling).

KL(p || lam p + (1 - lam) q): bounded by -log lam, with a gradient that does not explode where q is near 0.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.training.distill import train_with_divergence

BASELINE = Baseline(
    slug="kd_sfkl",
    title="Token-level distillation by skewed forward KL",
    track="llm",
    tasks=["*"],
    requires=["logits"],
    tags=["off-policy", "divergence"],
    reference="Ko, Kim, Chen, Yun; ICML 2024, arXiv 2402.03898 (section 3.1)",
)


class SkewedForwardKlParams(Params):
    """Skew, weight of the divergence and its temperature."""

    lam: float = Field(0.1, ge=0, lt=1, description="weight of the teacher in the second argument; 0: forward KL")
    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the hard labels have the rest")
    temperature: float = Field(
        1.0, gt=0, le=100, description="divides the logits of both; the loss has its square as factor"
    )


@hookimpl
def train(task, params):
    loss = divergence("sfkl", lam=params.lam)
    return train_with_divergence(task, loss, kd_ratio=params.kd_ratio, temperature=params.temperature)
