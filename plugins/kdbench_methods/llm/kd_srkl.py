"""Token-level distillation by skewed reverse KL, on the data (Ko et al., 2024, without their sampling).

KL(q || (1 - lam) p + lam q): the small weight is on the distribution that is also the first argument.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.training.distill import train_with_divergence

BASELINE = Baseline(
    slug="kd_srkl",
    title="Token-level distillation by skewed reverse KL",
    track="llm",
    tasks=["*"],
    requires=["logits"],
    tags=["off-policy", "divergence"],
    reference="Ko, Kim, Chen, Yun; ICML 2024, arXiv 2402.03898 (section 3.1)",
)


class SkewedReverseKlParams(Params):
    """Skew, weight of the divergence and its temperature."""

    lam: float = Field(0.1, ge=0, lt=1, description="weight of the student in the second argument; 0: reverse KL")
    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the hard labels have the rest")
    temperature: float = Field(
        1.0, gt=0, le=100, description="divides the logits of both; the loss has its square as factor"
    )


@hookimpl
def train(task, params):
    loss = divergence("srkl", lam=params.lam)
    return train_with_divergence(task, loss, kd_ratio=params.kd_ratio, temperature=params.temperature)
