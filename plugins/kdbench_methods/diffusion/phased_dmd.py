"""Phased DMD: few-step distribution matching distillation via score matching within subintervals.

Fan et al., 2025. Few-step DMD trains all steps with one network and one critic of clean samples, and truncates the
gradient at a random step, which makes samples as little diverse as those of one step. Here the noise levels are cut at
1 = t_0 > t_1 > ... > t_N = 0:

* *experts*: phase k trains a copy of the teacher for the step from t_{k-1} to t_k, on states that the frozen experts
  before it lead to. Distributions are matched at t_k, not at clean samples (section 3.2);
* *subintervals*: x_{t_k} is diffused on to t in (t_k, 1) with x_t = a x_s + b n, a = alpha_t / alpha_s and
  b^2 = sigma_t^2 - a^2 sigma_s^2, where the expert is moved along T(x_t) - F_k(x_t);
* *critic*: F_k starts from the teacher anew and learns v* = (alpha_s^2 sigma_t + alpha_t sigma_s^2) / (alpha_s^2 b) n -
  x_s / alpha_s, with the loss clamp(1 / b^2, 0, 10) |b psi - b v*|^2: E[v* | x_t] is the velocity of the expert's
  samples, while n - x_s is biased (section 3.3);
* sampling uses the experts one after the other. With fewer phases than steps a phase trains a random one of its steps;
  one phase is few-step DMD with gradient truncation, which the paper compares with.

``evaluate`` adds ``naive_bias``, how far the target n - x_s is from the velocity noise - x_0 of the data (closed form,
with the teacher's posterior mean), and on points ``critic_bias``, how far critics are from the velocity of the experts'
own samples, on a straight line; both are the largest of all phases. Videos and models of billions of parameters, where
the paper sees the difference in motion, have no counterpart here.
"""

import json
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.diffusion.blocks.backward import student_times
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.phases import PhaseMatching, affordable, phases_of
from kdbench.tracks.diffusion.blocks.subinterval import naive_bias
from kdbench.tracks.diffusion.blocks.turns import alternate
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

PAPER = Paper(
    slug="phased_dmd",
    title="Phased DMD: Few-step Distribution Matching Distillation via Score Matching within Subintervals",
    year=2025,
    authors=[
        "Xiangyu Fan",
        "Zesong Qiu",
        "Zhuguanyu Wu",
        "Fanzhou Wang",
        "Zhiqian Lin",
        "Tianxiang Ren",
        "Dahua Lin",
        "Ruihao Gong",
        "Lei Yang",
    ],
    track="diffusion",
    arxiv="2510.27684",
    source="paper",
    tasks=["points", "digits", "attributes"],
    requires=["weights"],
    tags=["score-distillation", "few-step", "experts"],
    claims=[
        Compare(
            metric="diversity",
            subject="phased_dmd",
            reference={"method": "phased_dmd", "params": {"phases": 1}},
            tasks=["digits", "digits-dit", "attributes"],
            note="Samples of one prompt are more diverse than with one network and a truncated gradient, at equal NFE.",
        ),
        Compare(
            metric="fd",
            subject="phased_dmd",
            reference={"method": "dmd2", "params": {"steps": 4}},
            tasks=["digits"],
            note="Phases are better than four steps of DMD2.",
        ),
        Compare(
            metric="critic_bias",
            subject="phased_dmd",
            reference={"method": "phased_dmd", "params": {"target": "naive"}},
            tasks=["ring", "ring-flow"],
            direction="min",
            note="Critics that learn the corrected target are nearer to the velocity of the experts' samples.",
        ),
        Compare(
            metric="sw2",
            subject="phased_dmd",
            reference={"method": "phased_dmd", "params": {"target": "naive"}},
            tasks=["ring", "ring-flow", "grid"],
            note="The biased target makes worse generators.",
        ),
    ],
    departures=[
        "experts are whole copies, not adapters: the networks are small",
        "learning rates are 2e-4 and 4e-4: there are some hundred updates",
        "on other processes than straight lines b is that of the line which the process is a scaling of",
        "the direction is divided by mean|x_0 - T(x_t)| with the x_0 along which the expert's step goes",
    ],
)


class PhasedDmdParams(Params):
    """Phases, levels and turns."""

    steps: int = Field(4, ge=1, le=64, description="steps of the generator (N)")
    phases: int = Field(4, ge=1, le=64, description="experts, one a phase; a divisor of steps; 1: DMD with truncation")
    ratio: int = Field(5, ge=1, le=100, description="updates of a critic for each of its expert (K)")
    target: Literal["corrected", "naive"] = Field("corrected", description="what critics learn: v*, or n - x_s")
    levels: Literal["noisier", "own"] = Field(
        "noisier", description="where distributions are compared: (t_k, 1), or (t_k, t_{k-1}) alone"
    )
    mode: Literal["jump", "renoise"] = Field(
        "jump", description="step of the solver: along the predicted noise, or with fresh noise"
    )
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the experts")
    critic_lr: float = Field(4e-4, gt=0, le=1, description="learning rate of the critics")
    clip: float = Field(10.0, ge=0, le=1000, description="largest norm of either gradient; 0: any")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    start: float = Field(0.0, ge=0, le=1000, description="first time of the generator; 0: the prior's")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged experts")


FILE = "phases.json"


@hookimpl
def train(task, params):
    times = student_times(task.process, params.steps, params.start or None)
    count = affordable(params.steps, params.phases, task.budget.remaining("steps"))
    phases = phases_of(times, count)
    experts, biases = [], []
    for number, phase in enumerate(phases):
        expert, notes = task.student(), Notes()
        critic = Critic(task.score_network(), lr=params.critic_lr, clip=params.clip or None)
        matching = PhaseMatching(
            task,
            experts,
            expert,
            critic,
            phase,
            times,
            guidance=params.guidance or task.guidance,
            mode=params.mode,
            target=params.target,
            levels=params.levels,
            notes=notes,
        )
        steps = int(task.budget.remaining("steps")) // (len(phases) - number)
        result = alternate(
            task,
            expert,
            critic,
            matching.critic_loss,
            matching.generator_loss,
            ratio=params.ratio,
            steps=steps,
            lr=params.lr,
            clip=params.clip or None,
            ema=params.ema,
            notes=notes,
            tag=f"phase{number + 1}",
        )
        if task.spec.data.kind == "points":
            biases.append(matching.critic_bias(task))
        experts += [result.ema.requires_grad_(False)] * phase.count
    task.artifact(FILE).write_text(json.dumps({"critic_bias": biases}) + "\n")
    return FewStep(experts, times, params.mode)


@torch.no_grad()
def bias_at(task, s, generator):
    """Mean length of the bias of n - x_s, on the data at a random noisier time, with the teacher's posterior mean."""
    split = task.split("test")
    x0, cond = split.x[:500], split.cond[:500]
    level = task.process.level(s) * (1 + 3 * torch.rand(len(x0), generator=generator))
    t = task.process.time(level).to(x0)
    x = task.process.noised(x0, noise_like(x0, generator), t)
    bias = naive_bias(task.process, x, task.teacher()(x, t, cond), s, t)
    return float(bias.flatten(1).pow(2).mean(1).sqrt().mean())


@hookimpl
def evaluate(task, model):
    metrics = task.score(model)
    generator = torch.Generator().manual_seed(0)
    biases = [bias_at(task, s, generator) for s in model.times[1:]]
    if biases:
        metrics["naive_bias"] = max(biases)
    found = json.loads(task.artifact(FILE).read_text())["critic_bias"]
    if found:
        metrics["critic_bias"] = max(found)
    return metrics
