"""Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head (Yang et al., 2024).

Softmax forgets what a shift of the logits says, so a logit-level loss is added to the probability-level one. On one
linear head the two contradict each other (sections 4.1 and 4.2, for a neurally collapsed network): the head degenerates
while the backbone would profit from both. So there are two heads on one backbone f:

    L = gamma CE(h1(f), y) + alpha L_B(h2(f), z_t)
    L_B = T^2 / B sum_{b,k} KL( [1/2, 1/2] || [sigma(d), 1 - sigma(d)] ),   d = (s - t) / T

with h1 linear and h2 linear or a small network. L_B is 0 only at s = t, its slope T (sigma(d) - 1/2) is bounded.

Gradient alignment (section 4.4): with g_ce and g_b the gradients of the two terms over all parameters, taken by
separate backward passes, g_b loses its component against g_ce where <g_b, g_ce> < 0; g_ce is never changed. Since the
component is c g_ce with one number c, the step is that of L - c L_ce with c held constant, which is what is minimised.

h1 is evaluated, h2 is dropped. ``heads=1`` puts all terms on h1: the failure case. ``probability`` adds ordinary
distillation on h1 to (or, with ``gamma=0``, in place of) the cross-entropy. Evaluation adds how often and where the
gradients conflict, and how far the training features and the main head have collapsed (NC1, spread of weight norms).
"""

import json
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.logits import binary_kl, cross_entropy, kd_kl
from kdbench.tracks.vision import metrics
from kdbench.tracks.vision.teachers import penult_of
from kdbench.training.gradients import conflict, cosine, flat_gradient
from kdbench.training.schedules import Watch
from kdbench.training.state import Values

PAPER = Paper(
    slug="dual_head_kd",
    title="Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head",
    year=2024,
    authors=["Penghui Yang", "Chen-Chen Zong", "Sheng-Jun Huang", "Lei Feng", "Bo An"],
    arxiv="2411.08937",
    url="https://github.com/penghui-yang/DHKD",
    track="vision",
    source="code",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain"],
    requires=["logits"],
    tags=["logits", "auxiliary-head", "gradient-alignment"],
    claims=[
        Compare(
            metric="top1",
            subject="dual_head_kd",
            reference={"method": "dual_head_kd", "params": {"heads": 1, "align": False}},
            tasks=["shapetex", "digits-gap"],
            note="cross-entropy and the logit-level loss on one head are worse than on two",
        ),
        Compare(
            metric="top1",
            subject={"method": "dual_head_kd", "params": {"gamma": 0.0, "probability": 1.0}},
            reference={
                "method": "dual_head_kd",
                "params": {"gamma": 0.0, "probability": 1.0, "heads": 1, "align": False},
            },
            tasks=["shapetex", "digits-gap"],
            note="so are probability-level distillation and the logit-level loss",
        ),
        Compare(
            metric="head_cosine",
            subject={"method": "dual_head_kd", "params": {"heads": 1, "align": False}},
            reference=0.0,
            tasks=["shapetex", "digits-gap"],
            direction="min",
            note="on one head the two gradients contradict each other in the head",
        ),
        Compare(
            metric="backbone_cosine",
            subject={"method": "dual_head_kd", "params": {"heads": 1, "align": False}},
            reference=0.0,
            tasks=["shapetex", "digits-gap"],
            note="but not in the backbone",
        ),
    ],
    departures=[
        "the sigmoid is clamped through its argument: 1 - 1e-8 is 1 in float32, whose logarithm would be infinite",
        "the small network's normalisation uses its running statistics for a batch of one sample",
    ],
)


class DualHeadKdParams(Params):
    """Heads, losses and their weights."""

    heads: int = Field(2, ge=1, le=2, description="1: all losses on the main head, 2: the logit-level loss on its own")
    gamma: float = Field(1.0, ge=0, description="weight of the cross-entropy of the main head")
    alpha: float = Field(1.0, ge=0, description="weight of the logit-level loss; 0.1 for ImageNet")
    temperature: float = Field(2.0, gt=0, le=100, description="T of the logit-level loss")
    form: Literal["half", "sigmoid"] = Field(
        "half", description="half: the paper's target [1/2, 1/2]; sigmoid: binary divergence to the teacher's sigmoids"
    )
    probability: float = Field(0.0, ge=0, description="weight of ordinary distillation on the main head")
    kd_temperature: float = Field(4.0, gt=0, le=100, description="temperature of ordinary distillation")
    auxiliary: Literal["nonlinear", "linear"] = Field("nonlinear", description="second head; ImageNet: linear")
    hidden: int = Field(200, ge=1, le=10000, description="width of the nonlinear head")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the nonlinear head")
    align: bool = Field(True, description="whether the logit-level gradient is projected; ImageNet: no")
    measure_every: int = Field(10, ge=1, description="steps between measurements of the gradients, where not aligned")


class SampleNorm(nn.BatchNorm1d):
    """Batch normalisation that takes its running statistics where a batch has a single sample."""

    def forward(self, x):
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def auxiliary_head(d, classes, params):
    """(B, d) to (B, classes)."""
    if params.auxiliary == "linear":
        return nn.Linear(d, classes)
    return nn.Sequential(
        nn.Linear(d, params.hidden),
        nn.Dropout(params.dropout),
        SampleNorm(params.hidden),
        nn.ReLU(),
        nn.Linear(params.hidden, classes),
    )


class Gradients(Values):
    """Sums of what was measured about the gradients of the main head's loss and of the logit-level loss."""

    kept = ("sums", "count", "step")

    def __init__(self, model, auxiliary):
        head = list(model.head().parameters())
        own = {id(p) for p in head}
        backbone = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        self.parameters = [*backbone, *head, *([] if auxiliary is None else auxiliary.parameters())]
        self.split = [sum(p.numel() for p in part) for part in (backbone, head)]
        self.sums, self.count, self.step = torch.zeros(3, device=head[0].device), 0, 1

    def measure(self, main, logit):
        """The coefficient of the alignment, a scalar <= 0, and the cosine of the gradients in the backbone."""
        reference, gradient = (flat_gradient(loss, self.parameters) for loss in (main, logit))
        n, m = self.split
        coefficient = conflict(gradient, reference)
        backbone = cosine(gradient[:n], reference[:n])
        head = cosine(gradient[n : n + m], reference[n : n + m])
        self.sums = self.sums + torch.stack([(coefficient < 0).float(), backbone, head])
        self.count += 1
        return coefficient, backbone

    def means(self):
        return dict(zip(("conflict_rate", "backbone_cosine", "head_cosine"), self.sums / self.count, strict=True))


def main_terms(logits, teacher, labels, params):
    """Terms of the main head: cross-entropy, and ordinary distillation where it has a weight."""
    terms = {"ce": params.gamma * cross_entropy(logits, labels)} if params.gamma else {}
    if params.probability:
        terms["kd"] = params.probability * kd_kl(logits, teacher, params.kd_temperature)
    return terms


@hookimpl
def train(task, params):
    trained = params.gamma > 0 or params.probability > 0
    if params.heads == 2 and not trained:
        raise UsageError("the main head has no loss: gamma or probability must be above 0 where there are two heads")
    student, steps = task.student(), task.budget.steps()
    with task.seeded("head"):
        width = student.head().in_features
        auxiliary = auxiliary_head(width, task.num_classes, params).to(task.device) if params.heads == 2 else None
    gradients, watch = Gradients(student, auxiliary), Watch(task, steps)

    def loss(model, batch):
        taps, teacher = model.taps(batch.x), task.teacher_logits(batch)
        terms = main_terms(taps.logits, teacher, batch.y, params)
        matched = auxiliary(taps.penult) if auxiliary is not None else taps.logits
        logit = params.alpha * binary_kl(matched, teacher, temperature=params.temperature, norm=params.form == "half")
        if trained and params.alpha and (params.align or (gradients.step - 1) % params.measure_every == 0):
            main = sum(terms.values())
            coefficient, backbone = gradients.measure(main, logit)
            watch.add(conflict=(coefficient < 0).float(), backbone_cosine=backbone)
            if params.align:  # its value is 0, its gradient the missing component
                terms["aligned"] = -coefficient * (main - main.detach())
        return terms | {"logit": logit}

    def on_step(step):
        gradients.step = step + 1
        watch(step)

    task.fit(
        student,
        loss,
        modules=[] if auxiliary is None else [auxiliary],
        on_step=on_step,
        state=[gradients, watch],
    )
    measured = {name: float(value) for name, value in gradients.means().items()} if gradients.count else {}
    if params.heads == 2:
        measured.pop("head_cosine", None)  # no parameter of a head is in both losses
    task.artifact("gradients.json").write_text(json.dumps(measured))
    return student


@hookimpl
def evaluate(task, model):
    """Conflicts of the training, and how far the features of the training images and the main head have collapsed."""
    split = task.split("labeled")
    return (
        task.score(model)
        | json.loads(task.artifact("gradients.json").read_text())
        | {
            "nc1": metrics.class_variability(penult_of(model, split.x), split.y),
            "weight_norm_spread": metrics.norm_spread(model.head().weight),
        }
    )
