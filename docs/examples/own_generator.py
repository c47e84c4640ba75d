"""A generator of one step that learns where the teacher's trajectories end."""

from kdbench import Baseline, hookimpl
from kdbench.tracks.diffusion.samplers.fewstep import one_step

CARD = Baseline(
    slug="own_generator",
    title="Endpoints of the teacher, made while training",
    track="diffusion",
    tasks=["points", "digits"],
    requires=["weights"],
    tags=["one-step", "data-free"],
)


@hookimpl
def train(task, params):
    student, teacher = task.student(), task.official_teacher()
    drawn, start = task.generator("samples"), task.sigma_init

    def loss(model, draw):
        wanted = teacher.sample(draw.noise, draw.cond, drawn).x
        found = model(task.process.prior(draw.noise, start), start, draw.cond)
        return (found - wanted).square().mean()

    task.fit(student, loss, loader=task.draws())
    return one_step(student, start)
