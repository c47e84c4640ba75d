"""The teacher's denoiser called once on noise: the floor, what a student starts from.

Its answer is the mean of all that the noise could become, a blur. No guidance.
"""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.diffusion.samplers.fewstep import one_step

BASELINE = Baseline(
    slug="naive_one_step",
    title="The teacher called once",
    track="diffusion",
    tasks=["points", "digits", "attributes", "edit", "sr", "hf"],
    requires=["weights"],
    tags=["reference-point"],
)


class NaiveOneStepParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    return one_step(task.teacher(), task.sigma_init)
