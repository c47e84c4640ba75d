"""DistiLLM: Towards Streamlined Distillation for Large Language Models (Ko et al., 2024).

Skewed forward KL, whose gradient stays bounded, on a mix of data that adapts: the student's own samples enter only
once its validation loss shows that data and student drift apart, and each sample is used many times from a replay
buffer, first in first out.
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.training.distill import train_with_divergence
from kdbench.training.replay import adaptive_batches

BASELINE = Baseline(
    slug="distillm",
    title="DistiLLM: Towards Streamlined Distillation for Large Language Models",
    track="llm",
    tasks=["instruct", "text"],
    requires=["logits"],
    tags=["on-policy", "replay", "divergence"],
    reference="Ko, Kim, Chen, Yun; ICML 2024, arXiv 2402.03898",
)


class DistiLlmParams(Params):
    """The skewed divergence, the adaptive scheduler and the replay buffer."""

    base: Literal["sfkl", "srkl"] = Field("sfkl", description="skewed forward or reverse KL")
    lam: float = Field(0.1, ge=0, lt=1, description="skew; 0: plain KL")
    threshold: float = Field(0.0, ge=0, le=1, description="phi before training: share of the student's own samples")
    increase: float = Field(0.1, ge=0, le=1, description="of phi where the validation loss has grown")
    tolerance: float = Field(0.1, ge=0, le=10, description="growth of the validation loss, in nats, that raises phi")
    validations: int = Field(10, ge=1, le=1000, description="during training, evenly spaced")
    capacity: int = Field(1000, ge=1, le=1000000, description="sequences that the replay buffer holds")
    sampling_temperature: float = Field(1.0, gt=0, le=10, description="at which the student samples")
    max_new: int = Field(24, ge=1, le=4096, description="longest sampled response in tokens")
    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the tokens' labels have the rest")
    steps_fraction: float = Field(0.4, gt=0, le=1, description="share of the task's steps: sampling makes them dearer")


@hookimpl
def train(task, params):
    student = task.student()
    steps = task.budget.steps(params.steps_fraction)
    batches, on_step = adaptive_batches(
        task,
        student,
        steps=steps,
        validations=params.validations,
        max_new=params.max_new,
        temperature=params.sampling_temperature,
        capacity=params.capacity,
        threshold=params.threshold,
        increase=params.increase,
        tolerance=params.tolerance,
    )
    loss = divergence(params.base, lam=params.lam)
    return train_with_divergence(
        task, loss, kd_ratio=params.kd_ratio, student=student, loader=batches, steps=steps, on_step=on_step
    )
