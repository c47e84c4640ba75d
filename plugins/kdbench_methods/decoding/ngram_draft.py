"""An n-gram model of the training responses as draft: what speculative decoding has without a second network.

The counts of up to ``order`` tokens, interpolated by the weights of Witten and Bell (1991), propose; the target
verifies as it does with any other draft, so decoding is lossless.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.decoding.blocks.drafts import report
from kdbench.tracks.decoding.decoders.ngram import NGram, NGramDraft

BASELINE = Baseline(
    slug="ngram_draft",
    title="An n-gram model as draft",
    track="decoding",
    tasks=["arith", "listops", "docs", "hf"],
    requires=["labels"],
    tags=["speculative", "no-distillation", "no-network"],
    reference="Leviathan, Kalman, Matias; ICML 2023, arXiv 2211.17192 (negligible-cost drafts)",
)


class NGramDraftParams(Params):
    """The order of the model."""

    order: int = Field(3, ge=1, le=8, description="tokens of the longest counted sequence: 3 is a trigram model")


@hookimpl
def train(task, params):
    sequences = task.split("train").sequences
    draft = NGram.fit(sequences, params.order, task.teacher().config.vocab_size).to(task.device)
    task.budget.spend("samples", len(sequences))
    return NGramDraft(draft, task.spec.evaluation.gamma)


@hookimpl
def evaluate(task, model):
    scores = task.score(model)
    return scores | report(task, model, scores["speedup"]) | {"ngrams": float(model.draft.entries)}
