"""Multi-level knowledge distillation for out-of-distribution detection in text (Wu et al., ACL 2023).

The perplexity of a language model tells text it was made for from foreign text. A model that was pre-trained on much
and then fine-tuned has seen foreign text, too; one that learned from scratch has not, but knows little. Here the
fine-tuned model p teaches a student q of the same architecture, from random weights, on known text alone:

    L = KL(p || q) + sum_(l, k) w_(l, k) d_(l, k),      d_(l, t) = |h_l - M g_t|^2 / D

at every scored token, where h_l are the student's hidden states of layers l in the middle (3 to 9 of 12), g_t those of
all layers of the teacher, M one linear map for all, and d_(l, 1), d_(l, 2) the smallest over t: each token picks the
teacher layers that are most similar to what the student has. The weights w start at 1 and are trained along. The
perplexity of the student is the score.

``layer_map``, ``keep``, ``slots`` and ``projection`` are the ablations of the choice of layers: ``random`` ones,
``all``, only the ``last``, weights that stay 1. ``intermediate: 0`` is distillation of predictions alone. As the loss
falls with each weight, learned ones shrink and may pass 0 in long trainings: the curve and ``slots.json`` show them,
``nonnegative`` stops there.

Evaluation adds: the error of the identity that all pairs with weights 1 are the plain sum of mean squared errors; the
detection of machine text, where what the teacher writes after the first quarter of a text is the distribution, and the
human continuation is what should stand out (``auroc_machine``; ``pair_accuracy``: how often the human one of a pair has
the larger perplexity); and the loss of each test row under student and teacher (``rows.json``). In the paper the models
for machine text are trained on machine text; here it is the student of the task.
"""

import json
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.llm.blocks.detection import machine_text
from kdbench.tracks.llm.networks.models import targets_of, token_nll
from kdbench.tracks.llm.networks.taps import hidden_taps, ready
from kdbench.training.layer_maps import LayerMap, SlotWeights, layer_distances
from kdbench.training.loop import POINTS

PAPER = Paper(
    slug="mlkd_ood_text",
    title="Multi-Level Knowledge Distillation for Out-of-Distribution Detection in Text",
    year=2023,
    authors=["Qianhui Wu", "Huiqiang Jiang", "Haonan Yin", "Börje F. Karlsson", "Chin-Yew Lin"],
    venue="ACL",
    arxiv="2211.11300",
    url="https://github.com/microsoft/KC/tree/main/papers/MLKD_OOD",
    track="llm",
    source="code",
    tasks=["ood"],
    requires=["logits", "features"],
    tags=["off-policy", "features", "out-of-distribution"],
    claims=[
        Compare(
            metric="auroc",
            subject="mlkd_ood_text",
            reference="teacher",
            tasks=["ood"],
            note="The student's perplexity finds foreign text better than that of its fine-tuned teacher.",
        ),
        Compare(
            metric="auroc",
            subject="mlkd_ood_text",
            reference="sft",
            tasks=["ood"],
            note="It does so better than that of a model trained from scratch on the same text.",
        ),
        Compare(
            metric="auroc",
            subject="mlkd_ood_text",
            reference={"method": "mlkd_ood_text", "params": {"intermediate": 0.0}},
            tasks=["ood"],
            note="Layers in the middle add to what predictions alone teach.",
        ),
        Compare(
            metric="auroc",
            subject="mlkd_ood_text",
            reference={"method": "mlkd_ood_text", "params": {"layer_map": "random"}},
            tasks=["ood"],
            note="The most similar teacher layers teach more than random ones.",
        ),
        Compare(
            metric="identity_error",
            subject="mlkd_ood_text",
            reference=0.0,
            tasks=["ood"],
            kind="noninferior",
            margin=1e-4,
            direction="min",
            note="With all teacher layers and weights of 1 the loss is the sum over all pairs of mean squared errors.",
        ),
    ],
    departures=[
        "the released weights of the slots are not optimised on a GPU; here they are, and fixed ones are an option",
        "networks of 4 layers and the task's recipe (cosine, 300 steps) in place of GPT-2 small at a constant rate",
        "hidden states count at the positions whose next token is scored, all but the last of a text",
        "the student of machine-text detection is that of the task, not one trained on machine text",
    ],
)


class MlkdParams(Params):
    """Weights of the terms and the choice of layers."""

    prediction: float = Field(1.0, ge=0, le=100, description="weight of the divergence of predictions")
    intermediate: float = Field(1.0, ge=0, le=100, description="weight of the distances of hidden states")
    hard: float = Field(0.0, ge=0, le=100, description="weight of the next-token loss; the paper has none")
    temperature: float = Field(1.0, gt=0, le=100, description="of both sides of the divergence, without its square")
    layer_map: Literal["nearest", "random", "all", "skip", "last"] = Field(
        "nearest", description="teacher layers of each chosen student layer; nearest and random are chosen per token"
    )
    keep: int = Field(2, ge=1, le=1000, description="teacher layers per student layer, of nearest and random")
    first: int = Field(0, ge=0, le=1000, description="first student layer, from 1; 0: a quarter of the depth")
    last: int = Field(0, ge=0, le=1000, description="last student layer, from 1; 0: three quarters of the depth")
    slots: Literal["learned", "fixed", "nonnegative"] = Field("learned", description="weights of the kept distances")
    projection: Literal["teacher", "student", "both", "none"] = Field(
        "teacher", description="which side's hidden states pass a learned linear map, one for all its layers"
    )


def middle(params, depth):
    """The student layers that learn from hidden states, as a slice: by default a quarter to three quarters."""
    first, last = params.first or max(1, depth // 4), params.last or max(1, 3 * depth // 4)
    if not 1 <= first <= last <= depth:
        raise UsageError(f"first {first} and last {last} are not layers of a student of {depth}, in this order")
    return slice(first - 1, last)


class Bridge(nn.Module):
    """Distances of a student's layers to those of a teacher, weighted and summed: one value a token."""

    def __init__(self, params, student, teacher):
        super().__init__()
        self.layers = middle(params, student.config.num_hidden_layers)
        mine, theirs = student.config.hidden_size, teacher.config.hidden_size
        common = theirs if params.projection == "student" else mine
        self.of_student = nn.Linear(mine, common) if params.projection in ("student", "both") else nn.Identity()
        self.of_teacher = nn.Linear(theirs, common) if params.projection in ("teacher", "both") else nn.Identity()
        self.map = LayerMap(params.layer_map, params.keep)
        self.shape = (self.layers.stop - self.layers.start, teacher.config.num_hidden_layers)
        self.slots = SlotWeights(self.map.slots(*self.shape), params.slots)

    def distances(self, student, teacher):
        """(N, S, T) from the ``Taps`` of both."""
        mine, theirs = torch.stack(student.at(self.layers), 1), torch.stack(teacher.at(), 1).detach()
        return layer_distances(self.of_student(mine), self.of_teacher(theirs))

    def forward(self, student, teacher, generator=None):
        return self.slots(self.map.kept(self.distances(student, teacher), generator))

    def shares(self, student, teacher, generator):
        """(S, T) lists: how often each teacher layer is kept for each student layer."""
        which = self.map.chosen(self.distances(student, teacher), generator).flatten().cpu()
        counts = torch.bincount(which, minlength=self.shape[0] * self.shape[1]).view(self.shape).double()
        return (counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()


def first_batch(task, split):
    """The first validation or test rows, at most one batch of the recipe."""
    sequences = task.split(split).sequences.take(task.spec.recipe.batch_size)
    return sequences.batch(torch.arange(len(sequences)), split).to(task.device)


@hookimpl
def train(task, params):
    if params.prediction == params.intermediate == params.hard == 0:
        raise UsageError("one of prediction, intermediate and hard has to be above 0")
    student, teacher, steps = ready(task.student()), task.teacher(), int(task.budget.remaining("steps"))
    with task.seeded("bridge"):
        bridge = Bridge(params, student, teacher).to(task.device)
    draws, used = task.generator("layers"), params.intermediate > 0

    def loss(model, batch):
        mine = hidden_taps(model, batch)
        with torch.no_grad():
            theirs = hidden_taps(teacher, batch)
        parts = {}
        if params.prediction > 0:
            values = fkl(mine.logits, theirs.logits, temperature=params.temperature, scale_t2=False)
            parts["prediction"] = params.prediction * tok_mean(values)
        if used:
            parts["intermediate"] = params.intermediate * tok_mean(bridge(mine, theirs, draws))
        if params.hard > 0:
            parts["hard"] = params.hard * tok_mean(token_nll(mine.logits, targets_of(batch)))
        return parts

    def on_step(step):
        if used and (step % max(1, steps // POINTS) == 0 or step == steps):
            weights = bridge.slots.effective.detach()
            task.log(step, slot_mean=float(weights.mean()), slot_min=float(weights.min()))

    task.fit(student, loss, steps=steps, modules=[bridge] if used else [], on_step=on_step)
    if used:
        batch = first_batch(task, "val")
        with torch.no_grad():
            shares = bridge.shares(hidden_taps(student, batch), hidden_taps(teacher, batch), task.generator("shares"))
        table = {"weights": bridge.slots.effective.tolist(), "teacher_layers": shares}
        task.artifact("slots.json").write_text(json.dumps(table, indent=1) + "\n")
    return student


# --- evaluation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def identity_error(task, model, params):
    """Relative difference of the loss over all pairs, weights 1, from the sum of mean squared errors by torch."""
    params = params.model_copy(update={"layer_map": "all", "slots": "fixed"})
    with task.seeded("bridge"):
        bridge = Bridge(params, model, task.teacher()).to(task.device)
    batch = first_batch(task, "test")
    mine, theirs = hidden_taps(model.eval(), batch), hidden_taps(task.teacher(), batch)
    left, right = map(bridge.of_student, mine.at(bridge.layers)), [bridge.of_teacher(layer) for layer in theirs.at()]
    plain = sum(F.mse_loss(a, b) for a in left for b in right)
    return float((tok_mean(bridge(mine, theirs)) - plain).abs() / plain)


@hookimpl
def evaluate(task, model, params):
    """The official detection, and the identity, machine text and losses of every row."""
    measured, taught = task.kind.measure(task, model), task.kind.measure(task, task.teacher())
    losses = zip(task.split("test").rows, measured.examples["loss"], taught.examples["loss"], strict=True)
    table = [{"domain": row.domain, "student": float(mine), "teacher": float(theirs)} for row, mine, theirs in losses]
    task.artifact("rows.json").write_text(json.dumps(table) + "\n")
    extra = {"identity_error": identity_error(task, model, params), **machine_text(task, model, task.teacher())}
    return {**task.score(model), **extra}
