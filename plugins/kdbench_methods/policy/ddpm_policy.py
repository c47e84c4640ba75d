"""Diffusion policy: a chunk of actions is denoised over all levels before the first is executed.

Chi et al., RSS 2023. A network e(x_t, t, o) predicts the noise of x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, where x_0 are
T_p actions of a demonstration and o the last T_o observations; the loss is the mean squared error, t uniform. A chunk
starts as noise and passes all N levels with the posterior steps of DDPM: N evaluations for every T_a actions. Evaluated
are averaged weights.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.policy.blocks.denoising import train_denoiser
from kdbench.tracks.policy.policies.chunks import Denoising

BASELINE = Baseline(
    slug="ddpm_policy",
    title="Diffusion policy with all levels (DDPM)",
    track="policy",
    tasks=["nav", "gym"],
    requires=["labels"],
    tags=["imitation", "diffusion"],
    reference="Chi et al., RSS 2023, arXiv 2303.04137",
)


class DdpmPolicyParams(Params):
    """The schedule."""

    levels: int = Field(32, ge=1, le=1000, description="noise levels N, each one evaluation; the paper: 100")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged weights")


@hookimpl
def train(task, params):
    network, shape = train_denoiser(task, params.levels, ema=params.ema)
    return Denoising(network, levels=params.levels, steps=params.levels, **shape)
