"""Knowledge distillation of the sampling itself: one step learns, by regression, where the teacher's flow ends.

Pairs (z, x) of noise and the sample that the teacher's deterministic sampler makes of it are drawn once and stored; the
student G minimises the distance of G(z) to x, pixel by pixel. Where the student cannot follow the flow exactly it
answers with means, which are blurred.
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.diffusion.blocks.consistency import distance
from kdbench.tracks.diffusion.blocks.endpoints import endpoints
from kdbench.tracks.diffusion.samplers.fewstep import one_step

BASELINE = Baseline(
    slug="regression_kd",
    title="Regression onto the ends of the teacher's flow",
    track="diffusion",
    tasks=["points", "digits", "attributes", "sr"],
    requires=["weights", "samples"],
    tags=["regression", "data-free", "one-step"],
    reference="Luhman and Luhman, 2021",
)


class RegressionKdParams(Params):
    """Pairs and distance."""

    pairs: int = Field(2000, ge=1, le=10000000, description="stored pairs of noise and sample")
    steps: int = Field(0, ge=0, le=1000, description="steps of the teacher's sampler; 0: the task's")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    metric: Literal["mse", "huber"] = Field("mse", description="distance of two samples")
    c: float = Field(1e-3, gt=0, le=10, description="difference above which the Huber distance is straight")
    lr: float = Field(5e-4, gt=0, le=1, description="learning rate")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged student")


@hookimpl
def train(task, params):
    student, start = task.student(), task.sigma_init
    stored = endpoints(task, params.pairs, steps=params.steps or None, guidance=params.guidance or None)

    def loss(model, pair):
        made = model(task.process.prior(pair.noise, start), start, pair.cond)
        return distance(made, pair.x, params.metric, params.c).mean()

    loader = stored.loader(task.spec.recipe.batch_size, task.generator("order"))
    result = task.fit(student, loss, loader=loader, lr=params.lr, ema=params.ema)
    return one_step(result.ema, start)
