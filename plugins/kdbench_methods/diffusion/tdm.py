"""TDM: learning few-step diffusion models by trajectory distribution matching.

Luo et al., ICCV 2025. A student of K deterministic steps at times T = t_K > ... > t_1 > t_0 = 0 is to have the
teacher's *distribution* at every t_k: the flexibility of trajectories with the quality of distribution matching.

* *transition*: at its own state x_{t_k}, reached without gradient, the student predicts x_0 and the noise e that this
  implies, and goes to x_{t_{k-1}} = alpha x_0 + sigma e, without fresh noise;
* *diffusion*: from there, not from x_0, noise for what lies between is added up to tau in [t_{k-1}, t_k) (``separate``)
  or in [t_{k-1}, T);
* *critic*: predicts x_0 from the diffused point with weight min(SNR, 5) times an importance weight, the ratio of
  exp(-m^2 / 2) for the whole noise of the point (e and the fresh one mixed) and for the fresh one, m^2 being means over
  values;
* *student*: Huber (or squared) distance of x_0 to stopgrad(x_0 + (T_c - F) + (w - 1) (T_c - T_null)), divided by
  mean|x_0 - T_w|, T_w the guided teacher.

No data are read. As trajectories are matched, the same weights sample in any number of steps that divides K.

``evaluate`` adds the headline at these numbers of steps (``fd_1``, ``fd_2``, ...; also ``prompt_accuracy_1``, ... where
there are prompts), and ``marginal_sw2``: the mean over t_k of the sliced Wasserstein distance of the student's states
to the teacher's marginals there, divided by alpha + sigma; ``marginals.json`` has each. User studies and preference
models have no counterpart here.
"""

import json
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.diffusion.blocks.backward import roll, student_times
from kdbench.tracks.diffusion.blocks.consistency import distance
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.dmd import gradient_norm, normalizer
from kdbench.tracks.diffusion.blocks.levels import Levels, noise_like
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.subinterval import importance_weight, snr_weight
from kdbench.tracks.diffusion.blocks.turns import alternate
from kdbench.tracks.diffusion.evaluate.points import sliced_w2
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

PAPER = Paper(
    slug="tdm",
    title="Learning Few-Step Diffusion Models by Trajectory Distribution Matching",
    year=2025,
    authors=["Yihong Luo", "Tianyang Hu", "Jiacheng Sun", "Yujun Cai", "Jing Tang"],
    venue="ICCV",
    track="diffusion",
    arxiv="2503.06674",
    source="code",
    tasks=["points", "digits", "attributes", "hf"],
    requires=["weights"],
    tags=["score-distillation", "few-step", "data-free"],
    claims=[
        Compare(
            metric="marginal_sw2",
            subject="tdm",
            reference={"method": "tdm", "params": {"origin": "clean"}},
            tasks=["ring", "ring-flow"],
            direction="min",
            note="States are nearer to the teacher's marginals than those of a student matched at clean samples alone.",
        ),
        Compare(
            metric="fd",
            subject="tdm",
            reference={"method": "dmd2", "params": {"steps": 4}},
            tasks=["digits", "attributes"],
            note="Four deterministic steps are better than the four steps of DMD2.",
        ),
        Compare(
            metric="fd_2",
            subject="tdm",
            reference={"method": "tdm", "params": {"origin": "clean"}},
            tasks=["digits"],
            direction="min",
            note="The same weights serve other numbers of steps than they were trained for.",
        ),
        Compare(
            metric="fd",
            subject="tdm",
            reference={"method": "tdm", "params": {"importance": False}},
            tasks=["digits"],
            kind="noninferior",
            margin=0.5,
            note="The importance weight does no harm.",
        ),
    ],
    departures=[
        "learning rates are fifty times those of the released code, in its proportion of one to five",
        "levels are places of the process's grid between 2 % and the prior's, not indices from 20 to the last but ten",
        "critic and student roll out draws of their own; the released code shares one roll-out",
        "times are evenly spaced places of the whole grid; the released code leaves out the noisiest tenth",
    ],
)


class TdmParams(Params):
    """Steps, levels, losses."""

    steps: int = Field(4, ge=1, le=64, description="steps of the student (K)")
    ratio: int = Field(1, ge=1, le=100, description="updates of the critic for each of the student")
    separate: bool = Field(True, description="tau lies in the step's own interval; else anywhere above its end")
    origin: Literal["state", "clean"] = Field(
        "state", description="what is diffused: x_{t_{k-1}}, or x_0 (to any level), as in few-step DMD"
    )
    importance: bool = Field(True, description="weigh the critic's samples by the likelihood of their noise")
    random_end: bool = Field(False, description="a step ends anywhere in its interval in training (released option)")
    metric: Literal["huber", "mse"] = Field("huber", description="distance of x_0 to its target")
    huber: float = Field(1e-3, gt=0, le=10, description="where the Huber distance turns linear (c)")
    most_snr: float = Field(5.0, gt=0, le=1000, description="bound of the critic's weight")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance (w); 0: the task's")
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the student; the paper: 4e-6")
    critic_lr: float = Field(1e-3, gt=0, le=1, description="learning rate of the critic; the paper: 2e-5")
    beta2: float = Field(0.95, ge=0, lt=1, description="second decay of Adam; the first is 0")
    clip: float = Field(1.0, ge=0, le=1000, description="largest norm of either gradient; 0: any")
    start: float = Field(0.0, ge=0, le=1000, description="first time of the student; 0: the prior's")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged student")


class Trajectory:
    """Losses of student and critic; see the module."""

    def __init__(self, task, student, critic, times, params, notes):
        self.student, self.critic, self.times, self.params, self.notes = student, critic, times, params, notes
        self.process, self.teacher = task.process, task.teacher()
        self.guidance = params.guidance or task.guidance
        self.ends = torch.tensor([*times, 0.0], device=task.device)
        self.levels = Levels(task.process, least=0.02)
        self.critic_rng, self.rng = task.generator("critic"), task.generator("student")

    def moved(self, model, draw, rng):
        """x_0 of one differentiable call at a random step of each row, with its implied noise; the diffused point, its
        time, the fresh noise and the time that it was diffused from."""
        params, process, rows = self.params, self.process, len(draw)
        stop = torch.randint(len(self.times), (rows,), generator=rng).to(draw.noise.device)
        reached = roll(model, draw.noise, draw.cond, self.times, stop, rng, mode="jump")
        x0 = model(reached.x, reached.t, draw.cond)
        s, t = self.ends[stop + 1], self.ends[stop]
        if params.random_end:
            s = self.levels.draw(rows, rng, above=s.cpu(), below=t.cpu()).to(s)
        implied = process.noise_from_x0(reached.x, x0, reached.t)
        below = t.cpu() if params.separate else None
        if params.origin == "clean":
            s, below = torch.zeros_like(s), None
        tau = self.levels.draw(rows, rng, above=s.cpu(), below=below).to(s)
        fresh = noise_like(x0, rng)
        state = process.noised(x0, implied, s).detach()
        return x0, implied.detach(), process.diffuse(state, fresh, s, tau), tau, fresh, s

    def critic_loss(self, draw, real):
        with torch.no_grad():
            x0, implied, point, tau, fresh, s = self.moved(self.student, draw, self.critic_rng)
            weight = snr_weight(self.process, tau, self.params.most_snr)
            if self.params.importance:
                weight = weight * importance_weight(self.process, implied, fresh, s, tau)
        error = (self.critic.network(point, tau, draw.cond) - x0).pow(2).flatten(1).mean(1)
        return {"score": (weight * error).mean()}

    def student_loss(self, model, draw, real):
        x0, _, point, tau, _, _ = self.moved(model, draw, self.rng)
        with torch.no_grad():
            wanted = guided(self.teacher, point, tau, draw.cond, self.guidance)
            direction = wanted - self.critic.network(point, tau, draw.cond)
            goal = x0 + direction
        self.notes.add(gap=gradient_norm(direction))
        size = normalizer(x0, wanted).flatten()
        return {"tdm": (distance(x0, goal, self.params.metric, self.params.huber) / size).mean()}


@hookimpl
def train(task, params):
    student, notes = task.student(), Notes()
    betas, clip = (0.0, params.beta2), params.clip or None
    critic = Critic(task.score_network(), lr=params.critic_lr, betas=betas, clip=clip)
    times = student_times(task.process, params.steps, params.start or None)
    losses = Trajectory(task, student, critic, times, params, notes)
    result = alternate(
        task,
        student,
        critic,
        losses.critic_loss,
        losses.student_loss,
        ratio=params.ratio,
        lr=params.lr,
        betas=betas,
        clip=clip,
        ema=params.ema,
        notes=notes,
    )
    return FewStep(result.ema, times, "jump")


def fewer(model, steps):
    """The same weights in a number of steps that divides the model's."""
    return FewStep(model.experts[0], model.times[:: len(model.times) // steps], "jump")


def marginals(task, model):
    """Sliced Wasserstein distance of the student's states to the teacher's marginal at each of its times but the first.

    The teacher's are noised data, or noised samples of the teacher where it is guided.
    """
    states = task.samples(model, min(500, task.spec.evaluation.samples), "test").trajectory
    count = len(states[0])
    real = task.split("test").x
    if task.guidance != 1:
        real = task.samples(task.official_teacher(), count, "test").x
    clean = real[torch.arange(count, device=real.device) % len(real)]
    generator, found = torch.Generator().manual_seed(0), {}
    for t, state in zip(model.times[1:], states[1:-1], strict=True):
        noised = task.process.noised(clean, noise_like(clean, generator), t)
        scale = float(task.process.alpha(t) + task.process.sigma(t))
        found[f"{t:.4g}"] = sliced_w2(state.flatten(1).cpu(), noised.flatten(1).cpu()) / scale
    return found


@hookimpl
def evaluate(task, model):
    wanted = [task.spec.headline.name, "prompt_accuracy"]
    extra = {}
    for steps in (n for n in range(1, len(model.times)) if len(model.times) % n == 0):
        scores = task.score(fewer(model, steps))
        extra |= {f"{name}_{steps}": scores[name] for name in wanted if name in scores}
    table = marginals(task, model) if len(model.times) > 1 else {}
    if table:
        task.artifact("marginals.json").write_text(json.dumps(table, indent=1) + "\n")
        extra["marginal_sw2"] = sum(table.values()) / len(table)
    return task.score(model) | extra
