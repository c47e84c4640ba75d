"""CTKD: Curriculum Temperature for Knowledge Distillation (Li et al., 2023), with a global temperature.

The temperature tau = tau_min + range * sigmoid(theta) is learned against the student: the student minimises the
distillation loss, theta maximises it through gradient reversal, whose strength grows along a cosine from 0 to 1, so
that the tasks get harder as the student gets better.
"""

import math

import torch
from torch import nn

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import tok_mean
from kdbench.training.loop import POINTS
from kdbench.training.reversal import reverse_gradient
from kdbench.training.state import Values

BASELINE = Baseline(
    slug="ctkd",
    title="Curriculum Temperature for Knowledge Distillation",
    track="llm",
    tasks=["*"],
    requires=["logits"],
    tags=["off-policy", "divergence", "temperature", "curriculum"],
    reference="Li, Li, Yang, Zhao, Song, Luo, Li, Yang; AAAI 2023, arXiv 2211.16231",
)


class CtkdParams(Params):
    """The range of the temperature and the strength of the adversary."""

    tau_min: float = Field(1.0, gt=0, le=20, description="smallest temperature")
    tau_range: float = Field(20.0, ge=0, le=100, description="largest temperature minus the smallest")
    start: float = Field(1.0, ge=-10, le=10, description="theta before training")
    strength: float = Field(1.0, ge=0, le=10, description="of the gradient reversal at the end of its ramp")
    ramp: float = Field(1.0, gt=0, le=1, description="share of the steps over which the reversal reaches its strength")
    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the distillation; the hard labels have the rest")


class LearnedTemperature(nn.Module):
    """One temperature for all tokens, trained to make the loss larger."""

    def __init__(self, tau_min, tau_range, start):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(float(start)))
        self.tau_min, self.tau_range = tau_min, tau_range

    def forward(self, strength):
        """The temperature, a scalar tensor within (tau_min, tau_min + tau_range)."""
        return self.tau_min + self.tau_range * torch.sigmoid(reverse_gradient(self.theta, strength))


def reversal_strength(done, strength, ramp):
    """Strength of the reversal after a share ``done`` of the steps: 0 at the start, ``strength`` from ``ramp`` on."""
    return strength * (1 - math.cos(math.pi * min(1.0, done / ramp))) / 2


@hookimpl
def train(task, params):
    student = task.student()
    temperature = LearnedTemperature(params.tau_min, params.tau_range, params.start).to(task.device)
    steps = int(task.budget.remaining("steps"))
    reversal = Values(strength=0.0)

    def loss(model, batch):
        tokens = task.tokens(model, batch)
        distillation = fkl(tokens.student, tokens.teacher, temperature=temperature(reversal.strength))
        parts = {"kd": params.kd_ratio * tok_mean(distillation)}
        if params.kd_ratio < 1:
            parts["ce"] = (1 - params.kd_ratio) * tok_mean(tokens.nll)
        return parts

    def on_step(step):
        reversal.strength = reversal_strength(step / steps, params.strength, params.ramp)
        if step % max(1, steps // POINTS) == 0 or step == steps:
            task.log(step, temperature=temperature(0.0).detach(), reversal=reversal.strength)

    task.fit(student, loss, steps=steps, modules=[temperature], on_step=on_step, state=[reversal])
    return student
