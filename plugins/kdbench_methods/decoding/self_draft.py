"""The target as its own draft: every proposal is accepted, which is the most that a draft can be worth."""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.decoding.decoders.speculative import Speculative

BASELINE = Baseline(
    slug="self_draft",
    title="The target as its own draft",
    track="decoding",
    tasks=["arith", "listops", "docs", "scenes", "hf"],
    requires=["weights"],
    tags=["reference-point", "speculative"],
)


class SelfDraftParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    return Speculative(task.teacher(), task.spec.evaluation.gamma)
