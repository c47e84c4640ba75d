"""Model compression via distillation and quantization (Polino, Pascanu and Alistarh, ICLR 2018).

Weights are cut into buckets, scaled to [0, 1] by their minimum and range, and put on a few levels. ``method`` says how:

- ``quantized`` (section 3): the student is trained at a low precision. In each step the full-precision weights w are
  quantized to 2^bits uniform levels, the loss and its gradient are those of the quantized network, and the gradient is
  applied to w, which is quantized once more at the end. The loss is weight T^2 KL + (1 - weight) CE.
- ``differentiable`` (section 4): a trained student keeps its weights, and the levels of each tensor are learned by
  descent on the same loss, starting at quantiles; tensors with a larger gradient get more levels.
- ``post``: a trained student is quantized, without further training: what the others are compared with.

With ``distill`` off the loss is the cross-entropy alone. Evaluation adds the size after Huffman coding of the level
indices (two floats per bucket, learned levels and all that is not quantized included), bits per weight, and the
accuracy of the full-precision weights. Translation with recurrent networks is not part of this track.
"""

import json
from copy import deepcopy
from dataclasses import asdict
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.training.quantization import (
    FLOAT_BITS,
    LearnedLevels,
    allocate_points,
    layer_weights,
    straight_through,
    tensor_size,
    uniform,
)

PAPER = Paper(
    slug="quantized_distillation",
    title="Model compression via distillation and quantization",
    year=2018,
    authors=["Antonio Polino", "Razvan Pascanu", "Dan Alistarh"],
    venue="ICLR 2018",
    arxiv="1802.05668",
    url="https://github.com/antspy/quantized_distillation",
    track="vision",
    source="code",
    tasks=["classify", "hetero", "longtail", "noisy", "multidomain"],
    requires=["logits"],
    tags=["logits", "quantization", "compression"],
    claims=[
        Compare(
            metric="top1",
            subject="quantized_distillation",
            reference={"method": "quantized_distillation", "params": {"distill": False}},
            tasks=["shapetex"],
            note="at 2 bits, a teacher helps the student that is trained quantized",
        ),
        Compare(
            metric="top1",
            subject={"method": "quantized_distillation", "params": {"reduction": "samples"}},
            reference={"method": "quantized_distillation", "params": {"distill": False}},
            tasks=["shapetex"],
            note="the same with a divergence that is not divided by the number of classes",
        ),
        Compare(
            metric="top1",
            subject={"method": "quantized_distillation", "params": {"distill": False}},
            reference={"method": "quantized_distillation", "params": {"method": "post"}},
            tasks=["shapetex"],
            note="at 2 bits, training quantized beats quantizing a trained student",
        ),
    ],
    departures=[
        "biases and normalisations keep full precision: at 2 to 24 values a tensor, the floats of a bucket cost more",
        "every tensor has a Huffman code of its own",
        "the schedule and the learning rate of the track's recipe; levels at 1e-3, chosen on validation data",
    ],
)


class QuantizedDistillationParams(Params):
    """Quantizer, loss, and the learning of levels."""

    method: Literal["quantized", "differentiable", "post"] = Field(
        "quantized", description="training at low precision, learned levels, or rounding after the training"
    )
    bits: int = Field(2, ge=1, le=16, description="2^bits levels; for learned levels the average per tensor")
    bucket: int = Field(64, ge=2, le=65536, description="weights that share a minimum and a range; the paper's is 256")
    distill: bool = Field(True, description="learn from the teacher; off: cross-entropy alone")
    temperature: float = Field(2.0, gt=0, le=100, description="softens both networks' distributions")
    weight: float = Field(0.7, ge=0, le=1, description="of the divergence; the cross-entropy has the rest")
    reduction: Literal["elements", "samples"] = Field(
        "elements", description="mean of the divergence over samples and classes, as in the released code, or samples"
    )
    rounding: Literal["nearest", "stochastic"] = Field(
        "nearest", description="of quantized training; stochastic rounding is unbiased"
    )
    truncated: bool = Field(False, description="keep full-precision weights in [-1, 1] and stop gradients outside")
    first_and_last: bool = Field(True, description="quantize the first and the last layer, too")
    points_steps: int = Field(200, ge=1, le=100_000, description="steps in which levels are learned, beyond the task's")
    points_lr: float = Field(1e-3, gt=0, le=1, description="peak learning rate of the levels")
    points_start: Literal["quantiles", "uniform"] = Field("quantiles", description="levels to start from")
    points_teacher: Literal["student", "teacher"] = Field(
        "student", description="who teaches the levels: the full-precision student, or the task's teacher"
    )
    redistribute: bool = Field(True, description="more levels to tensors with a larger gradient; off: equally many")
    gradient_steps: int = Field(5, ge=1, le=1000, description="batches over which that gradient is averaged")


def losses(logits, target, labels, params):
    """Weighted terms on (B, C) logits; ``target`` are a teacher's logits, or None for cross-entropy alone."""
    if target is None:
        return {"ce": cross_entropy(logits, labels)}
    kd = kd_kl(logits, target, params.temperature)
    if params.reduction == "elements":
        kd = kd / logits.shape[1]
    return {"ce": (1 - params.weight) * cross_entropy(logits, labels), "kd": params.weight * kd}


def fit_student(task, params, student, names):
    """Train the student with the task's steps, on quantized weights (those in ``names``) or, without names, plainly."""
    noise = task.generator("rounding") if params.rounding == "stochastic" else None
    limit = 1.0 if params.truncated and names else None

    def loss(model, batch):
        weights = {name: model.get_parameter(name) for name in names}
        on_levels = {
            name: straight_through(full, uniform(full, params.bits, params.bucket, noise).weights, limit)
            for name, full in weights.items()
        }
        target = task.teacher_logits(batch) if params.distill else None
        return losses(functional_call(model, on_levels, (batch.x,)), target, batch.y, params)

    def clamp(step):
        with torch.no_grad():
            for name in names:
                student.get_parameter(name).clamp_(-limit, limit)

    if limit is not None:
        clamp(0)
    task.fit(student, loss, on_step=clamp if limit is not None else None)


def gradient_norms(task, params, student, names):
    """Norm of the mean loss gradient of each tensor, over a few batches; the student is not changed."""
    weights = [student.get_parameter(name) for name in names]
    total = [torch.zeros_like(weight) for weight in weights]
    student.eval()
    for _, batch in task.steps(task.train_loader("labeled"), steps=params.gradient_steps, spend="aux_steps"):
        gradients = torch.autograd.grad(cross_entropy(student(batch.x), batch.y), weights)
        total = [sum_ + gradient for sum_, gradient in zip(total, gradients, strict=True)]
    return [float(each.norm()) / params.gradient_steps for each in total]


class OnLearnedLevels(nn.Module):
    """A student whose weights are fixed but for the levels of the named ones; its batch statistics adapt."""

    def __init__(self, student, names, points, params):
        super().__init__()
        self.student = student.requires_grad_(False)
        self.names = names
        self.levels = nn.ModuleList(
            LearnedLevels(student.get_parameter(name), count, params.bucket, params.points_start)
            for name, count in zip(names, points, strict=True)
        )

    def forward(self, x):
        made = {name: levels() for name, levels in zip(self.names, self.levels, strict=True)}
        return functional_call(self.student, made, (x,))


def learn_levels(task, params, student, names):
    """Quantized tensors by name and their numbers of levels, after the levels were learned."""
    points = [2**params.bits] * len(names)
    if params.redistribute:
        points = allocate_points(gradient_norms(task, params, student, names), 2**params.bits)
    full = deepcopy(student).requires_grad_(False).eval()
    network = OnLearnedLevels(student, names, points, params).to(task.device)

    def loss(model, batch):
        if not params.distill:
            target = None
        elif params.points_teacher == "teacher":
            target = task.teacher_logits(batch)
        else:
            with torch.no_grad():
                target = full(batch.x)
        return losses(model(batch.x), target, batch.y, params)

    def sort(step):
        for levels in network.levels:
            levels.sort()

    task.fit(
        network,
        loss,
        steps=params.points_steps,
        spend="aux_steps",
        on_step=sort,
        tag="levels",
        optimizer="sgd",
        lr=params.points_lr,
        weight_decay=0.0,
    )
    student.requires_grad_(True)
    return {name: levels.quantized() for name, levels in zip(names, network.levels, strict=True)}, points


@hookimpl
def train(task, params):
    student = task.student()
    names = layer_weights(student, ends=params.first_and_last)
    fit_student(task, params, student, names if params.method == "quantized" else [])
    full = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.state_dict().items()}
    save_file(full, task.artifact("full_precision.safetensors"))
    if params.method == "differentiable":
        quantized, levels = learn_levels(task, params, student, names)
    else:
        quantized = {name: uniform(student.get_parameter(name), params.bits, params.bucket) for name in names}
        levels = [2**params.bits] * len(names)
    learned = params.method == "differentiable"
    sizes = {}
    for (name, made), count in zip(quantized.items(), levels, strict=True):
        sizes[name] = asdict(tensor_size(made, count, learned=learned))
        with torch.no_grad():
            student.get_parameter(name).copy_(made.weights)
    task.artifact("sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
    return student


@hookimpl
def evaluate(task, model):
    """Size of the network and what its precision costs in accuracy."""
    sizes = json.loads(task.artifact("sizes.json").read_text())
    total = sum(t.numel() for t in model.state_dict().values() if t.is_floating_point())
    coded = sum(size["weights"] for size in sizes.values())
    code_bits = sum(size["code_bits"] for size in sizes.values())
    bits = code_bits + sum(size["side_bits"] for size in sizes.values()) + FLOAT_BITS * (total - coded)
    full = deepcopy(model)
    full.load_state_dict(load_file(task.artifact("full_precision.safetensors")))
    scores, full_top1 = task.score(model), task.score_test(full).metrics["top1"]
    return scores | {
        "compressed_bytes": bits / 8,
        "compression": FLOAT_BITS * total / bits,
        "bits_per_weight": code_bits / coded,
        "levels_used": sum(s["used"] for s in sizes.values()) / sum(s["levels"] for s in sizes.values()),
        "full_precision_top1": full_top1,
        "precision_gap": full_top1 - scores["top1"],
    }
