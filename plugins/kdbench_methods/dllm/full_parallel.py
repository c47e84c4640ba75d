"""The teacher in one forward a block: every position is committed as if it did not depend on any other."""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.policies.basic import All

BASELINE = Baseline(
    slug="full_parallel",
    title="All tokens of a block at once",
    track="dllm",
    tasks=["*"],
    requires=["weights"],
    tags=["reference-point", "policy"],
)


class FullParallelParams(Params):
    """There is nothing to choose."""


@hookimpl
def train(task, params):
    return PolicyDecoder(task.teacher(), All())
