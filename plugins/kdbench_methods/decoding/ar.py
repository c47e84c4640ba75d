"""The target alone, one forward for each token: what every way to decode is compared with."""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive

BASELINE = Baseline(
    slug="ar",
    title="Autoregressive decoding with the target alone",
    track="decoding",
    tasks=["*"],
    tags=["reference-point"],
)


class ArParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    return Autoregressive()
