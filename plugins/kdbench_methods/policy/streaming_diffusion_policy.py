"""Streaming Diffusion Policy: a buffer whose nearest actions are clean and whose farthest are noise.

Høeg et al., 2024. Diffusion policy denoises a chunk of T_p actions from pure noise, executes T_a of them and begins
again: N evaluations for T_a actions. Here what was not executed stays in a buffer of h = floor((T_p - T_o + 1) / T_a)
chunks, chunk i at level floor(N (i + 1) / h) - 1, and one evaluation takes every position a level down, each with the
coefficients of its own:

* *inference*: the whole buffer is denoised until its first chunk is clean, N / h evaluations; T_a actions are executed
  and dropped, T_a positions of noise (and what fills no chunk) are appended; the next observation conditions all of it.
  A new episode begins with zeros that have the noise of their levels (``zero``), or with a chunk that is denoised at
  once and gets its noise again (``denoise``);
* *training*: the network reads one level per position and predicts the noise, mean squared error. With probability
  ``chunked`` the levels of a row are those of the buffer less j, j ~ U{0, ..., floor(N / h) - 1}, otherwise one level
  t ~ U{0, ..., N - 1} for all positions.

With h = 1 this is the ordinary diffusion policy. ``evaluate`` adds the evaluations for a chunk, how much actions change
at the borders of chunks and inside them, and the success where the goal moves on the way.
"""

from typing import Literal

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.policy.blocks.denoising import train_denoiser
from kdbench.tracks.policy.blocks.studies import study
from kdbench.tracks.policy.policies.streaming import Streaming, training_levels

PAPER = Paper(
    slug="streaming_diffusion_policy",
    title="Streaming Diffusion Policy: Fast Policy Synthesis with Variable Noise Diffusion Models",
    year=2024,
    authors=["Sigmund H. Høeg", "Yilun Du", "Olav Egeland"],
    track="policy",
    arxiv="2406.04806",
    source="code",
    tasks=["nav", "gym"],
    requires=["labels"],
    tags=["imitation", "diffusion", "few-step"],
    claims=[
        Compare(
            metric="nfe",
            subject="streaming_diffusion_policy",
            reference="ddpm_policy",
            tasks=["nav-bimodal"],
            kind="ratio",
            margin=0.2501,
            note="N / h evaluations for a chunk instead of N; h is 4.",
        ),
        Compare(
            metric="success",
            subject="streaming_diffusion_policy",
            reference="ddpm_policy",
            tasks=["nav-bimodal"],
            kind="noninferior",
            margin=0.05,
            note="It succeeds as often as with all levels for every chunk, within five points.",
        ),
        Compare(
            metric="success",
            subject="streaming_diffusion_policy",
            reference={"method": "ddim_policy", "params": {"steps": 8}},
            tasks=["nav-bimodal"],
            kind="noninferior",
            margin=0.05,
            note="And as often as few steps of DDIM that cost the same.",
        ),
    ],
    departures=[
        "32 levels instead of 100, and 18 positions of which 4 are executed (h = 4), so that a job takes a minute",
        "averaged weights have a constant decay instead of one that rises with the power 0.75, as training is short",
        "the noise of positions before the newest observation is stored; the released code computes it and drops it",
        "levels are embedded one by one and averaged over neighbours where the time of the U-Net is coarser",
    ],
)


class StreamingParams(Params):
    """Levels, how they are drawn in training, and the first buffer."""

    levels: int = Field(32, ge=1, le=1000, description="noise levels N; the paper: 100")
    chunked: float = Field(0.8, ge=0, le=1, description="share of training rows whose levels rise from chunk to chunk")
    solver: Literal["ddpm", "ddim"] = Field("ddpm", description="steps with noise, or deterministic ones")
    start: Literal["zero", "denoise"] = Field("zero", description="the first buffer of an episode")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged weights")


@hookimpl
def train(task, params):
    student = task.spec.student

    def levels(count, length, generator):
        return training_levels(
            count, params.levels, length, student.observed, student.executed, params.chunked, generator
        )

    network, shape = train_denoiser(task, params.levels, ema=params.ema, draw=levels)
    return Streaming(network, levels=params.levels, solver=params.solver, start=params.start, **shape)


@hookimpl
def evaluate(task, model):
    return task.score(model) | study(task, model)
