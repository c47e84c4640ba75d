"""Masking: the target reads the task alone, and tokens that the format's automaton has no step for are masked.

Nothing looks ahead: as long as the automaton allows another word of reasoning, it is up to the target to begin with the
format, and where it does not within the tokens that it has, the format is not met. ``reserve`` masks more: whatever
leaves too few tokens for the shortest text that meets it.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.decoding.decoders.constrained import Constrained

BASELINE = Baseline(
    slug="hard_mask",
    title="Masking with the format's automaton",
    track="decoding",
    tasks=["formats"],
    tags=["constrained-decoding"],
    reference="Willard and Louf, 2023",
)


class HardMaskParams(Params):
    """What is masked."""

    reserve: bool = Field(False, description="true: leave enough tokens for the shortest text that meets the format")
    jump: bool = Field(True, description="true: tokens without an alternative take no forward of their own")


@hookimpl
def train(task, params):
    return Constrained(task.tokenizer, reserve=params.reserve, jump=params.jump)


@hookimpl
def evaluate(task, model):
    return task.score(model) | task.kind.study(task, model)
