"""A causal network of the teacher's size and training, which writes from left to right: the reference of quality.

One forward a token up to the end, greedy. What order and parallelism have cost, the network itself being the same.
"""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.dllm.decoders.causal import Causal

BASELINE = Baseline(
    slug="ar_ref",
    title="A causal network of the same size",
    track="dllm",
    tasks=["lists", "squares", "arith"],
    requires=["weights"],
    tags=["reference-point"],
)


class ArRefParams(Params):
    """There is nothing to choose."""


@hookimpl
def train(task, params):
    return Causal(task.causal_reference())
