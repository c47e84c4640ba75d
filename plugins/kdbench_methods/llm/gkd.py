"""GKD: Generalized Knowledge Distillation (Agarwal et al., 2024).

Each batch is, with probability lam, replaced by responses that the student samples itself, so that the teacher
corrects the mistakes the student really makes; the loss is the generalised Jensen-Shannon divergence on those tokens,
without a gradient through the sampling (algorithm 1). lam = 0 with beta = 0 is supervised distillation, lam = 1 with
beta = 1 on-policy reverse KL.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.training.distill import train_with_divergence
from kdbench.training.rollouts import MixedBatches, sampler

BASELINE = Baseline(
    slug="gkd",
    title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
    track="llm",
    tasks=["instruct", "text"],
    requires=["logits"],
    tags=["on-policy", "divergence"],
    reference="Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem; ICLR 2024, arXiv 2306.13649",
)


class GkdParams(Params):
    """The mix of data, the divergence and the sampling."""

    lam: float = Field(0.5, ge=0, le=1, description="probability that a batch is sampled from the student")
    beta: float = Field(0.5, ge=0, le=1, description="of the Jensen-Shannon divergence; 0: forward KL, 1: reverse KL")
    seq_kd: bool = Field(False, description="the other batches are sampled from the teacher, not taken from the data")
    sampling_temperature: float = Field(0.9, gt=0, le=10, description="at which responses are sampled")
    temperature: float = Field(1.0, gt=0, le=100, description="of both distributions in the loss")
    scale_t2: bool = Field(True, description="the loss has the factor temperature^2; false as in the TRL library")
    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the tokens' labels have the rest")
    max_new: int = Field(24, ge=1, le=4096, description="longest sampled response in tokens")
    steps_fraction: float = Field(0.4, gt=0, le=1, description="share of the task's steps: sampling makes them dearer")


@hookimpl
def train(task, params):
    student = task.student()
    options = {"max_new": params.max_new, "temperature": params.sampling_temperature}
    source = task.train_loader()
    if params.seq_kd:
        teacher = sampler(task, task.teacher(), purpose="teacher", **options)
        source = MixedBatches(source, teacher, lambda step: 1.0, task.rng("seq_kd"))
    batches = MixedBatches(source, sampler(task, student, **options), lambda step: params.lam, task.rng("mix"))
    loss = divergence("jsd", beta=params.beta, scale_t2=params.scale_t2)
    return train_with_divergence(
        task,
        loss,
        kd_ratio=params.kd_ratio,
        temperature=params.temperature,
        student=student,
        loader=batches,
        steps=task.budget.steps(params.steps_fraction),
    )
