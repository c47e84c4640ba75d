"""SeqKD from several experts: fine-tuning on their verified responses, each to the problems of its own domain.

Kim and Rush, 2016, with one teacher a domain. What on-policy distillation from several experts has to beat.
"""

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.reasoning_rl.blocks.experts import experts_of, routed_answers
from kdbench.tracks.reasoning_rl.blocks.traces import loader_of
from kdbench.training.distill import hard_loss

BASELINE = Baseline(
    slug="seqkd_experts",
    title="Sequence-Level Knowledge Distillation from domain experts",
    track="reasoning_rl",
    tasks=["mixed"],
    requires=["samples"],
    tags=["off-policy", "teacher-samples", "multi-teacher"],
    reference="Kim, Rush; EMNLP 2016, arXiv 1606.07947",
)


class SeqKdExpertsParams(Params):
    """What the experts write, and the size of a step."""

    problems: int = Field(1024, ge=1, le=1000000, description="training problems that are answered")
    temperature: float = Field(0.6, gt=0, le=10, description="at which the responses are sampled")
    rows: int = Field(8, ge=1, le=256, description="responses a step, as a multiple of the recipe's batch size")


@hookimpl
def train(task, params):
    student, rows, generator = task.student(), task.problems("train"), task.generator("traces")
    asked = [rows[i] for i in torch.randperm(len(rows), generator=generator)[: params.problems].tolist()]
    written = routed_answers(task, experts_of(task), asked, generator=generator, temperature=params.temperature)
    kept = written.correct.nonzero()[:, 0]
    task.log(0, verified=len(kept) / len(written))
    chosen = written.rows(kept) if len(kept) else written  # experts that solve nothing still have a style
    task.fit(student, hard_loss(task), loader=loader_of(task, chosen, params.rows * task.spec.recipe.batch_size))
    return student
