"""The teacher, one token per step: in each block the most confident position is committed, and the text read anew.

What a mask predictor writes best and slowest; all speed is measured from here.
"""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.policies.basic import TopK

BASELINE = Baseline(
    slug="seq",
    title="One token per step",
    track="dllm",
    tasks=["*"],
    requires=["weights"],
    tags=["reference-point"],
    reference="Nie et al., 2025 (LLaDA, low-confidence remasking)",
)


class SeqParams(Params):
    """There is nothing to choose."""


@hookimpl
def train(task, params):
    return PolicyDecoder(task.teacher(), TopK(1), [TopK(1)])
