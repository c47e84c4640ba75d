"""Knowledge Distillation with Adapted Weight (KD-AIF: Wu et al., 2025).

Training samples do not help equally. The influence of a sample on the loss of a held-out set V, from robust statistics,

    I_i = - grad L(V)^T (H + damping)^-1 grad l(z_i)            I_i > 0: weighting z_i up is harmful

becomes its weight: -I is mapped to [-1, 1] between its 1st and 99th percentiles and exponentiated, w in [1/e, e]. Then

    L = (1/B) sum_i w_i [(1 - a) CE_i + a T^2 KL_i(T)]          example code: a = 1, T = 7, and no factor T^2

Weights come once, from a first student that is trained with unit weights, or again and again from the student itself;
they weigh the student's loss, the cross-entropy of the teacher's training, or both. Unlabelled samples count with the
teacher's prediction as their label, and those with the lowest weights are dropped. The inverse is exact for the last
linear layer, an eigenvalue-corrected Kronecker approximation, or conjugate gradients and LiSSA for the whole network.
V is a part of the task's validation data, whose labels are right also where those of the training data are noisy.

``weighting`` gives what this is compared with: no weights, the same weights on randomly chosen samples, weights from
the loss in place of the influence, and the removal of the most harmful fifth. Evaluation adds the spread of the class
accuracies, how well influence predicts what leaving out groups of samples does to the last layer, and, where labels are
wrong, whether influence finds them.
"""

import json
import time
from dataclasses import replace
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import fkl
from kdbench.losses.logits import UNLABELLED, pearson
from kdbench.tracks.vision.metrics import class_accuracies
from kdbench.tracks.vision.teachers import pseudo_labels, train_on
from kdbench.training.influence import influence_weights, influences, leave_out_effects
from kdbench.training.state import Values

PAPER = Paper(
    slug="kd_aif",
    title="Knowledge Distillation with Adapted Weight",
    year=2025,
    authors=["Sirong Wu", "Xi Luo", "Junjie Liu", "Yuhui Deng"],
    venue="Statistics",
    arxiv="2501.02705",
    url="https://github.com/Sharonwu96/KD-AIF",
    track="vision",
    source="code",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain", "webly"],
    requires=["logits"],
    tags=["logits", "sample-weights", "influence", "semi-supervised"],
    claims=[
        Compare(
            metric="top1",
            subject="kd_aif",
            reference={"method": "kd_aif", "params": {"weighting": "uniform"}},
            tasks=["noisy"],
            note="weights from influence beat uniform ones where labels are wrong",
        ),
        Compare(
            metric="flipped_weight_ratio",
            subject="kd_aif",
            reference=1.0,
            tasks=["noisy"],
            direction="min",
            note="samples with a wrong label weigh less than the others",
        ),
    ],
    departures=[
        "helpful samples weigh more: the released code has the opposite sign, against its own aim",
        "the range of the weights is that of the 1st to 99th percentile, so that one outlier does not make all alike",
        "the whole network's curvature is the Gauss-Newton matrix: conjugate gradients need a positive one",
        "the teacher is trained on with weights rather than from scratch",
        "the divergence has the factor T^2: with 1 / 49 of it a student from scratch hardly learns in the task's steps",
    ],
)


class KdAifParams(Params):
    """Where weights come from, what they weigh, and the loss."""

    weighting: Literal["influence", "uniform", "random", "loss", "remove"] = Field(
        "influence", description="what weighs the samples; the paper's is influence"
    )
    update: Literal["once", "periodic"] = Field(
        "once", description="from a first student, or every period steps from the student itself"
    )
    weigh: Literal["student", "teacher", "both"] = Field("student", description="whose training is weighted")
    solver: Literal["exact", "kfac", "cg", "lissa"] = Field(
        "exact", description="inverse Hessian: of the last layer (exact, kfac) or of the whole network (cg, lissa)"
    )
    damping: float = Field(1e-3, gt=0, le=100, description="added to the Hessian's diagonal")
    iterations: int = Field(20, ge=1, le=10000, description="of cg and lissa")
    curvature: int = Field(500, ge=1, description="training samples whose curvature cg and lissa use")
    val_images: int = Field(300, ge=1, description="validation samples whose loss counts, at most")
    percentile: float = Field(1.0, ge=0, lt=50, description="clipped at either end before the weights are made")
    drop: float = Field(0.2, ge=0, lt=1, description="of the unlabelled samples, those with the lowest weights")
    period: int = Field(150, ge=1, description="periodic: steps between updates")
    pilot_steps: int | None = Field(None, ge=1, description="once: of the first student; null: as many as the second")
    teacher_steps: int = Field(150, ge=1, description="of a teacher whose training is weighted")
    teacher_rate: float = Field(0.2, gt=0, le=10, description="its peak learning rate over that of its first training")
    temperature: float = Field(7.0, gt=0, le=100, description="softens both networks' distributions")
    alpha: float = Field(1.0, ge=0, le=1, description="of the divergence; the cross-entropy has the rest")
    scale_t2: bool = Field(True, description="whether the divergence has the factor T^2; the example code: no")


class Weights(Values):
    """What each training sample weighs, and the influence behind it."""

    kept = ("weights", "influence", "clipped", "updates", "seconds")

    def __init__(self, count, device):
        self.weights, self.influence = torch.ones(count, device=device), torch.zeros(count, device=device)
        self.clipped, self.updates, self.seconds = 0.0, 0, 0.0


def weighted_loss(logits, teacher, labels, weights, params):
    """Named terms: means over the batch of weight times loss; logits and teacher (B, C), labels and weights (B,)."""
    terms = {}
    if params.alpha > 0:
        each = fkl(logits, teacher, temperature=params.temperature, scale_t2=params.scale_t2)
        terms["kd"] = params.alpha * (weights * each).mean()
    if params.alpha < 1:
        each = F.cross_entropy(logits.float(), labels, reduction="none")
        terms["ce"] = (1 - params.alpha) * (weights * each).mean()
    return terms


def sample_weights(harm, labelled, params, generator):
    """Weights (N,) and the share that was clipped, from harm (N,), influence or loss; ``labelled`` (N,) is a mask."""
    weights, clipped = influence_weights(harm, params.percentile, 100 - params.percentile)
    if params.weighting == "random":
        weights = weights[torch.randperm(len(weights), generator=generator).to(weights.device)]
    elif params.weighting == "remove":
        weights, clipped = (harm <= torch.quantile(harm, 0.8)).float(), 0.0
    unlabelled = (~labelled).nonzero().flatten()
    lowest = weights[unlabelled].argsort(stable=True)[: int(params.drop * len(unlabelled))]
    weights[unlabelled[lowest]] = 0.0
    return weights, clipped


class Weigher:
    """Measures the influence of one data set's samples on the validation loss."""

    def __init__(self, task, params, x, labels, labelled, name):
        self.task, self.params, self.train, self.labelled = task, params, (x, labels), labelled
        val = task.split("val")
        known = (val.y != UNLABELLED).nonzero().flatten()
        order = torch.randperm(len(known), generator=task.generator(f"{name}-val")).to(known.device)
        rows = known[order[: params.val_images]]
        self.val, self.generator = (val.x[rows], val.y[rows]), task.generator(f"{name}-weights")

    def __call__(self, model, state):
        """Put the weights that a network's state gives into ``state``."""
        params, started = self.params, time.perf_counter()
        if params.weighting == "loss":
            logits = self.task.predict(model, self.train[0])
            harm = F.cross_entropy(logits, self.train[1], reduction="none").double()
        else:
            harm = influences(
                model,
                self.train,
                self.val,
                damping=params.damping,
                solver=params.solver,
                iterations=params.iterations,
                curvature=params.curvature,
                generator=self.generator,
            )
        state.influence, state.seconds = harm, state.seconds + time.perf_counter() - started
        state.weights, state.clipped = sample_weights(harm, self.labelled, params, self.generator)
        state.updates += 1


def weigh_teacher(task, params):
    """A private copy of the teacher, trained on by cross-entropy weighted with the influence on itself."""
    teacher, split = task.teacher(trainable=True), task.teacher_split()
    split = replace(split, index=torch.arange(len(split), device=split.x.device))
    state = Weights(len(split), task.device)
    if params.weighting != "uniform":
        labelled = torch.ones(len(split), dtype=torch.bool, device=split.x.device)
        Weigher(task, params, split.x, split.y, labelled, "teacher")(teacher, state)

    def loss(model, batch):
        each = F.cross_entropy(model(batch.x).float(), batch.y, reduction="none")
        return (state.weights[batch.index] * each).mean()

    train_on(task, teacher, loss, split, steps=params.teacher_steps, rate=params.teacher_rate, tag="teacher")
    return teacher


@hookimpl
def train(task, params):
    split, steps = task.split("train"), task.budget.steps()
    ask = task.teacher_logits if params.weigh == "student" else task.answers(weigh_teacher(task, params))
    labels = pseudo_labels(split, ask)
    state, weigh = Weights(len(split), task.device), params.weigh != "teacher" and params.weighting != "uniform"
    weigher = Weigher(task, params, split.x, labels, split.y != UNLABELLED, "student") if weigh else None

    def loss(model, batch):
        weights = state.weights[batch.index]
        return weighted_loss(model(batch.x), ask(batch), labels[batch.index], weights, params)

    def on_step(step):
        if step % params.period == 0 and step < steps:
            weigher(student, state)

    if weigh and params.update == "once":
        with task.seeded("pilot"):
            pilot = task.build_student().to(task.device)
        task.fit(pilot, loss, steps=params.pilot_steps or steps, spend="aux_steps", tag="pilot")
        weigher(pilot, state)
    student = task.student()
    periodic = weigh and params.update == "periodic"
    task.fit(student, loss, on_step=on_step if periodic else None, state=[state] if periodic else [])
    if weigh:
        save_file({"influence": state.influence, "weights": state.weights}, task.artifact("weights.safetensors"))
        about = {"clipped_share": state.clipped, "updates": state.updates, "seconds": state.seconds}
        task.artifact("weights.json").write_text(json.dumps(about))
    return student


# --- evaluation -------------------------------------------------------------------------------------------------------

GROUPS = 30
"""Groups of training samples that are left out one at a time."""


def about_weights(task):
    """Weights of samples with a right and with a wrong label, and by class (an artifact)."""
    saved = load_file(task.artifact("weights.safetensors"))
    weights, influence = saved["weights"].to(task.device), saved["influence"].to(task.device)
    y, truth = task.split("train").y, task.truth("train")
    by_class = {c: float(weights[truth == c].mean()) for c in truth.unique().tolist() if c >= 0}
    task.artifact("weights_by_class.json").write_text(json.dumps(by_class))
    values = {
        "clipped_share": json.loads(task.artifact("weights.json").read_text())["clipped_share"],
        "weight_std": float(weights.std()),
        "class_weight_std": float(torch.tensor(list(by_class.values())).std()),
    }
    wrong = (y != truth) & (y >= 0)
    right = (y == truth) & (y >= 0)
    if bool(wrong.any()) and bool(right.any()):
        values["flip_auroc"] = float(roc_auc_score(wrong[y >= 0].cpu(), influence[y >= 0].cpu()))
        values["weight_flipped"] = float(weights[wrong].mean())
        values["weight_clean"] = float(weights[right].mean())
        values["flipped_weight_ratio"] = values["weight_flipped"] / values["weight_clean"]
    return values


@hookimpl
def evaluate(task, model, params):
    each = class_accuracies(task.predict(model, task.split("test").x), task.split("test").y)
    each = each[~each.isnan()]
    values = {"class_top1_min": float(each.min()), "class_top1_std": float(each.std(correction=0))}
    split, val = task.split("labeled"), task.split("val")
    val = val.take(val.y != UNLABELLED)
    if len(split) >= 2 * GROUPS:
        order = torch.from_numpy(task.rng("groups").permutation(len(split))).to(task.device)
        effects = leave_out_effects(
            model, (split.x, split.y), (val.x, val.y), list(torch.tensor_split(order, GROUPS)), params.damping
        )
        values["leave_out_correlation"] = float(pearson(*effects))
    if params.weighting != "uniform" and params.weigh != "teacher":
        values |= about_weights(task)
    return task.score(model) | values
