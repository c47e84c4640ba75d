"""AdaKD: LLM-Oriented Token-Adaptive Knowledge Distillation.

Xie et al., AAAI 2026. Tokens are not equally hard, and what is hard changes while the student learns. The difficulty
of a token is the Hellinger distance s_t of teacher and student there. Two modules act on it:

* *loss-driven adaptive token focusing* keeps the hardest fraction r of the tokens of a batch. r shrinks while the
  moving average of the loss falls and grows when it rises (hysteresis around a reference that is reset each time);
* *inverse difficulty temperature scaling* gives each kept token its own temperature
  tau_t = tau_0 exp(-c tanh(log(s_t / median s))): hard tokens are sharpened, easy ones softened.

The loss is the mean over the kept tokens of tau_t^2 D(softmax(z_p / tau_t), softmax(z_q / tau_t)) for any divergence D.
"""

import math
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import divergence, hellinger
from kdbench.losses.tokens import tok_mean
from kdbench.training.loop import POINTS
from kdbench.training.replay import adaptive_batches
from kdbench.training.rollouts import MixedBatches, sampler
from kdbench.training.state import Values

PAPER = Paper(
    slug="adakd",
    title="LLM-Oriented Token-Adaptive Knowledge Distillation",
    year=2026,
    authors=[
        "Xurong Xie",
        "Zhucun Xue",
        "Jiafu Wu",
        "Jian Li",
        "Yabiao Wang",
        "Xiaobin Hu",
        "Yong Liu",
        "Jiangning Zhang",
    ],
    venue="AAAI",
    track="llm",
    arxiv="2510.11615",
    source="code",
    tasks=["instruct", "text"],
    requires=["logits"],
    tags=["off-policy", "on-policy", "divergence", "token-selection", "temperature"],
    claims=[
        Compare(
            metric="exact_match",
            subject="adakd",
            reference="kd_rkl",
            tasks=["instruct"],
            kind="noninferior",
            note="Reverse KL with AdaKD is at least as good as without, through fewer tokens.",
        ),
        Compare(
            metric="exact_match",
            subject="adakd",
            reference={"method": "adakd", "params": {"direction": "reversed"}},
            tasks=["instruct"],
            note="The reversed sign (hard tokens at high temperature) is worse.",
        ),
    ],
    departures=[
        "the moving average decays with 0.9 instead of 0.99: there are hundreds of steps, not tens of thousands",
        "the temperatures carry no gradient by default (the released code leaves open whether they do)",
    ],
)


class AdaKdParams(Params):
    """The divergence, the focus on hard tokens, and the temperatures."""

    base: Literal["rkl", "fkl", "jsd", "sym_kl", "sfkl", "srkl", "akl", "tvd"] = Field(
        "rkl", description="the divergence D that is adapted"
    )
    data: Literal["fixed", "gkd", "distillm"] = Field(
        "fixed", description="what is trained on: the data, the mix of gkd, or the adaptive replay of distillm"
    )
    focus: Literal["hardest", "random", "all"] = Field(
        "hardest", description="which tokens are kept; random (at the same r) and all are the ablations"
    )
    direction: Literal["inverse", "reversed", "none"] = Field(
        "inverse", description="hard tokens get a low temperature, a high one (ablation), or all get tau0"
    )
    tau0: float = Field(1.0, gt=0, le=10, description="temperature of a token of median difficulty")
    c: float = Field(0.5, ge=0, le=3, description="strength of the temperatures, which lie in tau0 [exp(-c), exp(c)]")
    eps: float = Field(0.05, ge=0, lt=1, description="relative change of the average loss that moves r")
    sigma: float = Field(0.05, ge=0, lt=1, description="relative change of r when it moves")
    floor: float = Field(0.1, gt=0, le=1, description="smallest r")
    decay: float = Field(0.9, ge=0, lt=1, description="of the moving average of the loss")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps after which r may move")
    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the distillation; the hard labels have the rest")
    detach: bool = Field(True, description="temperatures are constants of the gradient")
    steps_fraction: float = Field(
        0.4, gt=0, le=1, description="share of the task's steps used where data is sampled from the student"
    )
    max_new: int = Field(24, ge=1, le=4096, description="longest sampled response in tokens")


class Focus(Values):
    """The controller of r: a moving average of the loss, a reference, and hysteresis between them."""

    kept = ("r", "average", "reference")

    def __init__(self, *, eps, sigma, floor, decay, warmup_steps):
        self.eps, self.sigma, self.floor, self.decay, self.warmup_steps = eps, sigma, floor, decay, warmup_steps
        self.r = 1.0
        self.average = None
        self.reference = None

    def update(self, step, loss):
        """After step ``step`` (1-based), whose loss was ``loss``; the first average after warm-up is the reference."""
        self.average = loss if self.average is None else self.decay * self.average + (1 - self.decay) * loss
        if self.reference is None:
            if step > self.warmup_steps:
                self.reference = self.average
        elif self.average < self.reference * (1 - self.eps):
            self.r, self.reference = max(self.floor, self.r * (1 - self.sigma)), self.average
        elif self.average > self.reference * (1 + self.eps):
            self.r, self.reference = min(1.0, self.r * (1 + self.sigma)), self.average


def hardest(difficulty, r):
    """Which of the (N,) tokens are among the ``ceil(r N)`` most difficult, at least one: (N,) bool."""
    kept = torch.zeros_like(difficulty, dtype=torch.bool)
    kept[difficulty.topk(max(1, math.ceil(r * len(difficulty)))).indices] = True
    return kept


def temperatures(difficulty, tau0, c):
    """``tau0 exp(-c tanh(log(s / median s)))`` of difficulties (N,): decreasing in s, within tau0 [exp(-c), exp(c)].

    A negative ``c`` reverses the direction. The median is that of the given (kept) tokens.
    """
    s = difficulty.clamp_min(torch.finfo(difficulty.dtype).tiny)
    return tau0 * torch.exp(-c * torch.tanh(torch.log(s / s.detach().median())))


def adakd_loss(student, teacher, base, *, r=1.0, c=0.5, tau0=1.0, focus="hardest", detach=True, generator=None):
    """The mean over kept tokens of the tempered divergence, and what was done: (N, V) each to (scalar, dict).

    The dict has ``kept`` (N,) bool and the kept tokens' ``tau`` and ``difficulty``. ``generator`` draws the tokens of
    ``focus="random"``.
    """
    with torch.set_grad_enabled(not detach):
        difficulty = hellinger(student, teacher)  # at temperature 1, whatever tau is
    if focus == "all":
        kept = torch.ones_like(difficulty, dtype=torch.bool)
    else:
        rank = difficulty.detach()
        if focus == "random":
            rank = torch.rand(len(difficulty), generator=generator).to(difficulty.device)
        kept = hardest(rank, r)
    tau = temperatures(difficulty[kept], tau0, c)
    values = base(student[kept], teacher[kept], temperature=tau)
    return tok_mean(values), {"kept": kept, "tau": tau.detach(), "difficulty": difficulty[kept].detach()}


def batches_of(task, student, params, steps):
    """What is trained on, and what has to be called after each step: the method adapts any source of data."""
    if params.data == "distillm":
        return adaptive_batches(task, student, steps=steps, max_new=params.max_new)
    batches = task.train_loader()
    if params.data == "gkd":
        sample = sampler(task, student, max_new=params.max_new, temperature=0.9)
        batches = MixedBatches(batches, sample, lambda step: 0.5, task.rng("mix"))
    return batches, lambda step: None


@hookimpl
def train(task, params):
    student = task.student()
    steps = task.budget.steps(1.0 if params.data == "fixed" else params.steps_fraction)
    batches, each_step = batches_of(task, student, params, steps)
    focus = Focus(
        eps=params.eps,
        sigma=params.sigma,
        floor=params.floor,
        decay=params.decay,
        warmup_steps=params.warmup * steps,
    )
    c = {"inverse": params.c, "reversed": -params.c, "none": 0.0}[params.direction]
    base = divergence(params.base)
    chance = task.generator("focus")
    seen = Values(tokens=0, kept=0)
    latest = []  # of the current step alone

    def loss(model, batch):
        tokens = task.tokens(model, batch)
        value, what = adakd_loss(
            tokens.student,
            tokens.teacher,
            base,
            r=focus.r,
            c=c,
            tau0=params.tau0,
            focus=params.focus,
            detach=params.detach,
            generator=chance,
        )
        seen.tokens += len(what["kept"])
        seen.kept += len(what["tau"])
        latest.append((value.detach(), what["tau"].mean()))
        parts = {"kd": params.kd_ratio * value}
        if params.kd_ratio < 1:
            parts["ce"] = (1 - params.kd_ratio) * tok_mean(tokens.nll)
        return parts

    def on_step(step):
        each_step(step)
        value, tau = (float(torch.stack(column).mean()) for column in zip(*latest, strict=True))
        latest.clear()
        focus.update(step, value)
        if step % max(1, steps // POINTS) == 0 or step == steps:
            task.log(step, r=focus.r, tau=tau, average_loss=focus.average)

    task.fit(student, loss, loader=batches, steps=steps, on_step=on_step, state=[focus, seen])
    task.budget.set("trained_tokens", seen.kept)
    task.budget.set("trained_token_fraction", seen.kept / max(1, seen.tokens))
    return student
