"""TAID: Temporally Adaptive Interpolated Distillation.

Shing, Misaki, Bao, Yokoi and Akiba, ICLR 2025. A small student cannot follow a much larger teacher from the start:
forward KL averages its modes, reverse KL collapses to some. TAID lets the student chase an intermediate distribution
instead, between its own and the teacher's,

    p_t = softmax((1 - t) stopgrad(z_q) + t z_p),        J = -sum p_t log q,

with t growing from t_start to t_end. t never falls behind a linear schedule and runs ahead of it as long as the loss
keeps falling.
"""

import math

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import ce_soft, same_vocabulary
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.training.loop import POINTS
from kdbench.training.state import Values

PAPER = Paper(
    slug="taid",
    title="TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
    year=2025,
    authors=["Makoto Shing", "Kou Misaki", "Han Bao", "Sho Yokoi", "Takuya Akiba"],
    venue="ICLR",
    track="llm",
    arxiv="2501.16937",
    source="code",
    tasks=["instruct", "text"],
    requires=["logits"],
    tags=["off-policy", "divergence", "curriculum"],
    claims=[
        Compare(
            metric="exact_match",
            subject="taid",
            reference="kd_fkl",
            tasks=["instruct"],
            note="The student of TAID is better than that of forward KL.",
        ),
        Compare(
            metric="exact_match",
            subject="taid",
            reference="kd_rkl",
            tasks=["instruct"],
            note="The student of TAID is better than that of reverse KL.",
        ),
        Compare(
            metric="exact_match",
            subject="taid",
            reference={"method": "taid", "params": {"adaptive": False}},
            tasks=["instruct"],
            kind="noninferior",
            margin=0.02,
            note="The adaptive schedule is not worse than the linear one.",
        ),
    ],
    departures=[
        "alpha is 2e-2 instead of 5e-4: in hundreds of steps smaller ones never leave the linear schedule behind",
        "t follows the linear schedule from the first update to t_end; the released code stops one step short of it",
    ],
)


class TaidParams(Params):
    """The schedule of the interpolation."""

    t_start: float = Field(0.4, ge=0, le=1, description="interpolation at the first step; 0: the student itself")
    t_end: float = Field(1.0, ge=0, le=1, description="interpolation after the last step; 1: the teacher")
    alpha: float = Field(2e-2, ge=0, le=1, description="step size of the adaptive update")
    beta: float = Field(0.99, ge=0, lt=1, description="momentum of the relative change of the loss")
    adaptive: bool = Field(True, description="false: the linear schedule alone")
    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the distillation; the hard labels have the rest")


def interpolate(student, teacher, t):
    """Logits of the intermediate target, (..., V) from (..., V) each; no gradient flows through it.

    ``t`` = 0 gives the student's logits and ``t`` = 1 the teacher's, exactly. An entry that is impossible (``-inf``)
    for either is impossible in between.
    """
    student, teacher = same_vocabulary(student.detach(), teacher.detach())
    if t == 0:
        return student
    if t == 1:
        return teacher
    return (1 - t) * student + t * teacher


def taid_loss(student, teacher, t):
    """Soft cross-entropy towards the intermediate target, (..., V) each to (...); the gradient of KL(p_t || q)."""
    return ce_soft(student, interpolate(student, teacher, t))


class Interpolation(Values):
    """The schedule of t: plain numbers outside autograd; never decreasing, never behind the linear schedule."""

    kept = ("t", "momentum", "previous")

    def __init__(self, steps, t_start, t_end, alpha, beta, adaptive=True):
        self.steps, self.t_start, self.t_end = steps, t_start, t_end
        self.alpha, self.beta, self.adaptive = alpha, beta, adaptive
        self.t = t_start
        self.momentum = 0.0
        self.previous = None

    def linear(self, step):
        """Interpolation of the linear schedule after ``step`` of ``steps`` optimizer steps."""
        return self.t_end if step == self.steps else self.t_start + (self.t_end - self.t_start) * step / self.steps

    def update(self, step, loss):
        """After optimizer step ``step`` (1-based), whose loss was ``loss``; the first only stores it."""
        advance = 0.0
        if self.adaptive and self.previous is not None:
            change = (self.previous - loss) / (self.previous + 1e-15)
            self.momentum = self.beta * self.momentum + (1 - self.beta) * change
            advance = self.alpha * (1 - self.t) / (1 + math.exp(-self.momentum))
        self.previous = loss
        self.t = min(self.t_end, max(self.linear(step), self.t + advance))


@hookimpl
def train(task, params):
    student = task.student()
    steps = int(task.budget.remaining("steps"))
    schedule = Interpolation(steps, params.t_start, params.t_end, params.alpha, params.beta, params.adaptive)
    losses = []

    def loss(model, batch):
        tokens = task.tokens(model, batch)
        distillation = tok_mean(taid_loss(tokens.student, tokens.teacher, schedule.t))
        losses.append(distillation.detach())
        parts = {"taid": params.kd_ratio * distillation}
        if params.kd_ratio < 1:
            parts["ce"] = (1 - params.kd_ratio) * tok_mean(tokens.nll)
        return parts

    def on_step(step):
        schedule.update(step, float(torch.stack(losses).mean()))
        losses.clear()
        if step % max(1, steps // POINTS) == 0 or step == steps:
            task.log(step, t=schedule.t, t_linear=schedule.linear(step))

    task.fit(student, loss, steps=steps, on_step=on_step, state=[schedule])
    return student


HEAD = 10
TAIL = 0.2


def head_and_tail(logits):
    """Probability mass on the 10 most probable tokens and on the least probable fifth: (N, V) to two (N,).

    A student that averages the teacher's modes has less head and more tail than the teacher, one that collapses has
    more head.
    """
    p = logits.float().softmax(-1).sort(dim=-1, descending=True).values
    size = p.shape[-1]
    return p[:, : min(HEAD, size)].sum(-1), p[:, size - int(TAIL * size) :].sum(-1)


@hookimpl
def evaluate(task, model):
    scores = task.score(model)
    masses = {"student": [], "teacher": []}
    for batch in task.split("val").sequences.batches(task.spec.evaluation.batch_size, "val"):
        batch = batch.to(task.device)
        with torch.no_grad():
            masses["student"].append(torch.stack(head_and_tail(scored_logits(model, batch))))
        masses["teacher"].append(torch.stack(head_and_tail(task.scored_teacher(batch))))
    for name, parts in masses.items():
        head, tail = torch.cat(parts, dim=1).mean(1).tolist()
        scores |= {f"{name}_head_mass": head, f"{name}_tail_mass": tail}
    return scores
