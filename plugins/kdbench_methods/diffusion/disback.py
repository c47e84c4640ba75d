"""DisBack: a generator goes back along the path on which the teacher was led to it.

Zhang et al., ICLR 2025. Score distillation compares the critic of an untrained generator with the score of a finished
teacher, two distributions that are far apart at first. DisBack gives the generator targets that begin near it:

* *degradation recording*: with the first generator G_0 frozen, a copy of the teacher T learns to denoise
  G_0's samples. N checkpoints on the way lead from s'_0 = T to s'_N, the score of G_0.
* *distribution backtracking*: the path is walked back, s*_i = s'_{N-i}. The critic F starts as s'_N, not
  as T. For i = 1 ... N the generator is moved by F - s*_i, while F learns its samples; the last target is T.

Everything else is that of ``diff_instruct``, whose weights it reproduces bit for bit with ``checkpoints: 0``; with
``gan_weight`` it is that of ``dmd2``. Recording is charged to the steps of the task and metered as ``record_steps``.

``evaluate`` adds ``early_<headline>``, the mean of the validated headline over updates that are the same for
``diff_instruct``; ``mismatch``, the mean of |F - s*_i|^2 on the generator's samples when target i begins, and
``mismatch_teacher``, that of |F - T|^2 at these moments; ``critic.json`` has both for each target.
"""

from copy import deepcopy

import torch
from torch import nn

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.diffusion.blocks import diagnosis
from kdbench.tracks.diffusion.blocks.critic import Critic, fake_score_loss
from kdbench.tracks.diffusion.blocks.dmd import predictions
from kdbench.tracks.diffusion.blocks.gan import new_adversary
from kdbench.tracks.diffusion.blocks.levels import Levels, noise_like
from kdbench.tracks.diffusion.blocks.matching import Matching
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.progress import Progress, early, early_updates
from kdbench.tracks.diffusion.blocks.turns import alternate, generator_updates
from kdbench.tracks.diffusion.samplers.fewstep import one_step
from kdbench.training.state import Values

PAPER = Paper(
    slug="disback",
    title="Distribution Backtracking Builds A Faster Convergence Trajectory for Diffusion Distillation",
    year=2025,
    authors=[
        "Shengyuan Zhang",
        "Ling Yang",
        "Zejian Li",
        "An Zhao",
        "Chenye Meng",
        "Changyuan Yang",
        "Guang Yang",
        "Zhiyuan Yang",
        "Lingyun Sun",
    ],
    venue="ICLR",
    track="diffusion",
    arxiv="2408.15991",
    source="code",
    tasks=["points", "digits"],
    requires=["weights"],
    tags=["score-distillation", "data-free", "one-step", "curriculum"],
    claims=[
        Compare(
            metric="early_fd",
            subject="disback",
            reference="diff_instruct",
            tasks=["digits", "digits-small"],
            direction="min",
            note="At equal updates of the generator it is better in the first half of the training.",
        ),
        Compare(
            metric="early_sw2",
            subject="disback",
            reference="diff_instruct",
            tasks=["ring", "grid"],
            direction="min",
            note="So it is where the teacher's scores are exact.",
        ),
        Compare(
            metric="fd",
            subject="disback",
            reference="diff_instruct",
            tasks=["digits", "digits-small"],
            note="At an equal budget, recording included, it ends better.",
        ),
    ],
    departures=[
        "every target has an equal share of the updates; the released code switches once, and loads no checkpoint",
        "recording takes a quarter of the updates, not a part of a per cent: there are some thousand in all",
        "recording has a tenth of the critic's learning rate, so that checkpoints are spread over the path",
    ],
)


class DisbackParams(Params):
    """The path, and the score distillation along it."""

    checkpoints: int = Field(5, ge=0, le=100, description="checkpoints of the path (N); 0: the teacher is the target")
    record: float = Field(0.25, gt=0, le=0.5, description="share of the task's steps that recording takes")
    record_lr: float = Field(
        4e-5, gt=0, le=1, description="learning rate of recording; where it is high the first checkpoint is its end"
    )
    ratio: int = Field(1, ge=1, le=100, description="updates of the critic for each of the generator (K)")
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the generator; the paper, SDXL: 5e-7")
    critic_lr: float = Field(4e-4, gt=0, le=1, description="learning rate of the critic; the paper, SDXL: 5e-7")
    gan_weight: float = Field(0.0, ge=0, le=100, description="weight of the generator's adversarial loss; 0: no GAN")
    gan_critic_weight: float = Field(1e-2, ge=0, le=100, description="weight of the discriminator's loss")
    normalize: bool = Field(True, description="divide a sample's gradient by the mean of |x - D_real|")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of every target's guidance; 0: the task's")
    start: float = Field(0.0, ge=0, le=1000, description="time at which the generator is called; 0: the task's")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged generator")


def record(task, params, generator, start):
    """Checkpoints s'_1 ... s'_N of a teacher that learns the frozen generator's samples, as a frozen ModuleList.

    There are fewer where recording has fewer steps.
    """
    network, rng, levels = task.score_network(), task.generator("recording"), Levels(task.process)
    wanted = task.budget.steps(params.record)
    count = min(params.checkpoints, wanted)
    every = wanted // count
    path = nn.ModuleList(deepcopy(network) for _ in range(count)).requires_grad_(False)

    def loss(model, draw):
        with torch.no_grad():
            x = generator(task.process.prior(draw.noise, start), start, draw.cond)
        return {"score": fake_score_loss(model, x, draw.cond, levels, rng)}

    def keep(step):
        if step % every == 0:
            path[step // every - 1].load_state_dict(network.state_dict())

    task.budget.spend("record_steps", every * count)
    task.fit(
        network,
        loss,
        loader=task.draws(purpose="recording"),
        steps=every * count,
        on_step=keep,
        state=[path],
        tag="record",
        lr=params.record_lr,
        schedule="constant",
    )
    return path.eval()


class Backtracking(Values):
    """Which target is due: ``count`` of them, one after the other, over ``updates`` updates of the generator."""

    kept = ("done", "gaps")

    def __init__(self, count, updates):
        self.count, self.updates, self.done, self.gaps = count, updates, 0, []

    def index(self):
        """Of the target for the next update."""
        return min(self.count - 1, self.done * self.count // self.updates)


@torch.no_grad()
def mismatch(matching, target, draw, t, noise):
    """Mean of |F - target|^2 on the generator's samples, and of |F - T|^2."""
    x = matching.generator(matching.teacher.process.prior(draw.noise, matching.times[0]), matching.times[0], draw.cond)
    pairs = [predictions(real, matching.critic.network, x, draw.cond, t, noise) for real in (target, matching.teacher)]
    return [float((pair.fake - pair.real).square().flatten(1).sum(1).mean()) for pair in pairs]


@hookimpl
def train(task, params):
    generator, start, notes = task.student(), params.start or task.sigma_init, Notes()
    path = record(task, params, generator, start) if params.checkpoints else []
    targets = [*(task.share(network) for network in reversed(path[:-1])), task.teacher()]
    network = deepcopy(path[-1]).requires_grad_(True) if params.checkpoints else task.score_network()
    weights = {"critic_weight": params.gan_critic_weight, "generator_weight": params.gan_weight}
    adversary = new_adversary(task, network, notes=notes, **weights)
    critic = Critic(network, lr=params.critic_lr, modules=[] if adversary is None else [adversary.gan.heads])
    now = Backtracking(len(targets), generator_updates(task, params.ratio))
    progress = Progress(task, one_step(generator, start), early_updates(task, params.ratio))
    matching = Matching(
        task,
        generator,
        critic,
        times=[start],
        guidance=params.guidance or task.guidance,
        target=lambda: targets[now.index()],
        normalize=params.normalize,
        adversary=adversary,
        notes=notes,
    )
    probe = next(iter(task.draws(purpose="mismatch")))
    rng = task.generator("mismatch")
    t, noise = matching.levels.draw(len(probe), rng).to(probe.noise), noise_like(probe.noise, rng)

    def begins():
        spent = dict(task.budget.spent)
        now.gaps.append(mismatch(matching, targets[now.index()], probe, t, noise))
        task.budget.restore(spent)  # looking is no cost of the method

    def on_step(step):
        before, now.done = now.index(), step
        if now.index() != before:
            begins()
        progress(step)

    begins()
    result = alternate(
        task,
        generator,
        critic,
        matching.critic_loss,
        matching.generator_loss,
        ratio=params.ratio,
        real=adversary is not None,
        lr=params.lr,
        ema=params.ema,
        notes=notes,
        state=[now, progress, *([] if adversary is None else adversary.parts)],
        on_step=on_step,
    )
    progress.leave()
    diagnosis.leave(task, matching)
    own, teacher = (sum(column) / len(now.gaps) for column in zip(*now.gaps, strict=True))
    diagnosis.leave_values(task, diagnosis.found(task) | {"mismatch": own, "mismatch_teacher": teacher})
    return one_step(result.ema, start)


@hookimpl
def evaluate(task, model):
    return task.score(model) | diagnosis.found(task) | early(task)
