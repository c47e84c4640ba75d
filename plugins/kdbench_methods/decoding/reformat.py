"""Rewriting: the target answers the task alone, and a program reads the answer off and puts it into the format.

It knows what the task's answers look like and what each slot of a format means, which no general method does: a bound
for methods that write in the format themselves.
"""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.decoding.decoders.formatted import Rewritten

BASELINE = Baseline(
    slug="reformat",
    title="Answers put into the format by a program",
    track="decoding",
    tasks=["formats"],
    tags=["reference-point"],
)


class ReformatParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    return Rewritten(task.tokenizer)


@hookimpl
def evaluate(task, model):
    return task.score(model) | task.kind.study(task, model)
