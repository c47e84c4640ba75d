"""Token-level distillation by forward KL (Hinton et al., 2015; "supervised KD" of Agarwal et al., 2024).

KL(p || q) at every scored token: the student covers all of the teacher's probability mass.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.training.distill import train_with_divergence

BASELINE = Baseline(
    slug="kd_fkl",
    title="Distilling the Knowledge in a Neural Network (forward KL on tokens)",
    track="llm",
    tasks=["*"],
    requires=["logits"],
    tags=["off-policy", "divergence"],
    reference="Hinton, Vinyals, Dean; NeurIPS workshop 2014, arXiv 1503.02531",
)


class ForwardKlParams(Params):
    """Weight of the divergence and its temperature."""

    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the hard labels have the rest")
    temperature: float = Field(
        1.0, gt=0, le=100, description="divides the logits of both; the loss has its square as factor"
    )


@hookimpl
def train(task, params):
    loss = divergence("fkl")
    return train_with_divergence(task, loss, kd_ratio=params.kd_ratio, temperature=params.temperature)
