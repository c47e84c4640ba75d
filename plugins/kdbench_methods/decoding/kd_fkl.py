"""A draft that is distilled by forward KL on the ground truth: one divergence, fixed data.

KL(p || q) at every token of the reference responses, mean over the tokens of a batch.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.tracks.decoding.blocks.drafts import report
from kdbench.tracks.decoding.decoders.speculative import Speculative
from kdbench.training.distill import train_with_divergence

BASELINE = Baseline(
    slug="kd_fkl",
    title="Distilling the Knowledge in a Neural Network (a draft by forward KL on tokens)",
    track="decoding",
    tasks=["arith", "listops", "docs", "scenes", "hf"],
    requires=["logits"],
    tags=["speculative", "off-policy", "divergence"],
    reference="Hinton, Vinyals, Dean; NeurIPS workshop 2014, arXiv 1503.02531",
)


class ForwardKlParams(Params):
    """How long is trained, and on how much of the labels."""

    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the hard labels have the rest")
    steps_fraction: float = Field(1.0, gt=0, le=1, description="share of the task's steps that is used")


@hookimpl
def train(task, params):
    steps = task.budget.steps(params.steps_fraction)
    draft = train_with_divergence(task, divergence("fkl"), kd_ratio=params.kd_ratio, steps=steps)
    return Speculative(draft, task.spec.evaluation.gamma)


@hookimpl
def evaluate(task, model):
    scores = task.score(model)
    return scores | report(task, model, scores["speedup"])
