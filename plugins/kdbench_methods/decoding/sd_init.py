"""A draft that is trained on the ground truth alone: what speculative decoding has without any distillation."""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.decoding.blocks.drafts import report
from kdbench.tracks.decoding.decoders.speculative import Speculative
from kdbench.training.distill import hard_loss

BASELINE = Baseline(
    slug="sd_init",
    title="Fast Inference from Transformers via Speculative Decoding, with a draft trained on the ground truth",
    track="decoding",
    tasks=["arith", "listops", "docs", "scenes", "hf"],
    requires=["labels"],
    tags=["speculative", "no-distillation"],
    reference="Leviathan, Kalman, Matias; ICML 2023, arXiv 2211.17192",
)


class SdInitParams(Params):
    """None: the task's recipe is used as it is."""


@hookimpl
def train(task):
    draft = task.student()
    task.fit(draft, hard_loss(task))
    return Speculative(draft, task.spec.evaluation.gamma)


@hookimpl
def evaluate(task, model):
    scores = task.score(model)
    return scores | report(task, model, scores["speedup"])
