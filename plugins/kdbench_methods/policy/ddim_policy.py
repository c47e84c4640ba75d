"""Diffusion policy with few steps: trained as with all levels, sampled with DDIM at some of them.

The deterministic solver of Song et al. (ICLR 2021) passes ``steps`` evenly spaced levels instead of all N.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.policy.blocks.denoising import train_denoiser
from kdbench.tracks.policy.policies.chunks import Denoising

BASELINE = Baseline(
    slug="ddim_policy",
    title="Diffusion policy with few steps (DDIM)",
    track="policy",
    tasks=["nav", "gym"],
    requires=["labels"],
    tags=["imitation", "diffusion", "few-step"],
    reference="Chi et al., RSS 2023, arXiv 2303.04137; Song et al., ICLR 2021, arXiv 2010.02502",
)


class DdimPolicyParams(Params):
    """The schedule, and how much of it is used."""

    levels: int = Field(32, ge=1, le=1000, description="noise levels N in training")
    steps: int = Field(8, ge=1, le=1000, description="evaluations for a chunk, at most N")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged weights")


@hookimpl
def train(task, params):
    network, shape = train_denoiser(task, params.levels, ema=params.ema)
    steps = min(params.steps, params.levels)
    return Denoising(network, levels=params.levels, steps=steps, solver="ddim", **shape)
