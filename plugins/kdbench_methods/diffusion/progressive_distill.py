"""Progressive distillation: the number of steps is halved again and again.

In each round the student learns to do in one DDIM step what its teacher does in two: on noised data x_t its target is
the clean sample along which one step from t leads to where the teacher's two steps lead, with the weight that denoisers
are trained with. The student of a round starts with the weights of its teacher, and is the teacher of the next round.
The teacher of the first round is the task's, with guidance where it has any.

Averages of the weights are handed on; every round has an equal share of the updates. Where there are fewer updates than
rounds, the first rounds are left out.
"""

from copy import deepcopy

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.consistency import draw_pairs, implied_x0, two_steps
from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.processes import spread
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

BASELINE = Baseline(
    slug="progressive_distill",
    title="Progressive distillation",
    track="diffusion",
    tasks=["points", "digits", "attributes"],
    requires=["weights"],
    tags=["trajectory", "few-step"],
    reference="Salimans and Ho, ICLR 2022",
)


class ProgressiveDistillParams(Params):
    """Rounds."""

    first: int = Field(8, ge=1, le=1024, description="steps of the first round's student, which follows twice as many")
    last: int = Field(1, ge=1, le=1024, description="steps of the last round's student; first / last is a power of 2")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    lr: float = Field(5e-4, gt=0, le=1, description="learning rate")
    ema: float = Field(0.98, gt=0, lt=1, description="decay of the averaged student, within a round")


def rounds_of(first, last):
    """Steps of the students, round by round; raises ``UsageError`` where halving does not lead from first to last."""
    steps = [first]
    while steps[-1] > last and steps[-1] % 2 == 0:
        steps.append(steps[-1] // 2)
    if steps[-1] != last:
        raise UsageError(f"halving {first} steps does not lead to {last}: first / last is a power of 2")
    return steps


def progressive_loss(task, teacher, times, generator):
    """The loss of a round; ``teacher(cond)`` gives a prediction of two steps' length of the grid ``times``."""
    process = task.process

    def loss(model, batch):
        steps = draw_pairs(times, len(batch), generator).to(batch.x.device)
        x = process.noised(batch.x, noise_like(batch.x, generator), steps.t)
        reached = two_steps(teacher(batch.cond), process, x, steps)
        error = model(x, steps.t, batch.cond) - implied_x0(process, x, steps.t, reached, steps.end)
        return (spread(process.denoising_weight(steps.t), x) * error**2).mean()

    return loss


@hookimpl
def train(task, params):
    left = int(task.budget.remaining("steps"))
    rounds = rounds_of(params.first, params.last)[-left:]
    grid = task.process.grid(2 * params.first)
    student, teacher, w = task.student(), task.teacher(), params.guidance or task.guidance
    for number, count in enumerate(rounds):
        times, steps = grid[:: params.first // count], left // (len(rounds) - number)
        left -= steps

        def predict(cond, teacher=teacher, w=w):
            return lambda x, t: guided(teacher, x, t, cond, w)

        loss = progressive_loss(task, predict, times, task.generator(f"round/{count}"))
        fitted = task.fit(
            student, loss, loader=task.train_loader(), steps=steps, tag=f"n{count}", lr=params.lr, ema=params.ema
        )
        teacher, w = fitted.ema.eval(), 1.0
        student = deepcopy(teacher).requires_grad_(True)
    return FewStep(teacher, grid[:: 2 * params.first // params.last][:-1].tolist(), "jump")
