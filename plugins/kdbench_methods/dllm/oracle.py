"""The bound on lossless parallel decoding of the teacher: what it predicts right is committed, and nothing else.

Right is what the teacher writes one token per step. No decoder can know this; it says how many forwards the same text
needs at least if nothing about the network changes (Bao et al. 2025, section on extremely greedy parallel decoding).
"""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.dllm.decoders.oracle import OracleDecoder

BASELINE = Baseline(
    slug="oracle",
    title="Commits all predictions that are right",
    track="dllm",
    tasks=["*"],
    requires=["weights"],
    tags=["reference-point"],
    reference="Bao et al., 2025 (Learning to Parallel)",
)


class OracleParams(Params):
    """There is nothing to choose."""


@hookimpl
def train(task, params):
    return OracleDecoder(task.teacher())
