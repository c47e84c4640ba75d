"""Distilling the Knowledge in Data Pruning (Ben-Baruch et al., ICML 2025).

A teacher is trained on all data; the student sees a fraction f of them, chosen by a pruning score, and learns from

    L = (1 - alpha) CE + alpha T^2 KL(p_teacher || p_student)

with as many optimizer steps as on all data. The paper finds that with distillation a random subset is as good as any
clever one, that the best alpha falls as f grows (pruning scores keep wrongly labelled samples, which the teacher
corrects), and that for small f a teacher smaller than the student can be the better one.

Scores come from short trainings of the student's architecture, apart from teacher and student and averaged over
several: EL2N, the norm of the last layer's gradient (GraNd), forgetting events, memorisation, margin and entropy; the
hardest, easiest or moderate samples are kept. ``alpha`` null is a straight line from 1 at f = 0.1 to 0.5 at f = 1, our
reading; ``search`` tries several on validation data and uses the best; ``curve`` also trains students on other
fractions and measures the area under their accuracy.

The paper's motivation is that in ridge regression a teacher of more data lowers the error of a student of few. Its
closed form, for linear self-distillation on a random part of the data, is evaluated beside and checked by simulation.
"""

import json
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.tracks.vision.metrics import accuracy
from kdbench.tracks.vision.teachers import pseudo_labels
from kdbench.training.active import area, outputs
from kdbench.training.pruned_ridge import PrunedRidge
from kdbench.training.scores import Forgetting, el2n, grand, memorization, prune
from kdbench.training.selection import entropy, margin_informativeness

PAPER = Paper(
    slug="data_pruning_kd",
    title="Distilling the Knowledge in Data Pruning",
    year=2025,
    authors=["Emanuel Ben-Baruch", "Adam Botach", "Igor Kviatkovsky", "Manoj Aggarwal", "Gérard Medioni"],
    venue="ICML 2025",
    arxiv="2403.07854",
    url="https://proceedings.mlr.press/v267/ben-baruch25a.html",
    track="vision",
    source="paper",
    tasks=["prune", "classify", "ensemble", "hetero", "longtail", "noisy", "multidomain"],
    requires=["logits"],
    tags=["data-selection", "logits", "self-distillation"],
    claims=[
        Compare(
            metric="top1",
            subject={"method": "data_pruning_kd", "params": {"keep": 0.1}},
            reference={"method": "data_pruning_kd", "params": {"keep": 0.1, "score": "el2n"}},
            tasks=["prune-noisy"],
            kind="noninferior",
            margin=0.01,
            note="with distillation, random pruning is no worse than keeping the samples of the largest EL2N",
        ),
        Compare(
            metric="top1",
            subject="data_pruning_kd",
            reference={"method": "data_pruning_kd", "params": {"score": "el2n"}},
            tasks=["prune-noisy"],
            kind="noninferior",
            margin=0.01,
        ),
        Compare(
            metric="alpha",
            subject={"method": "data_pruning_kd", "params": {"keep": 0.1, "search": [0.0, 0.25, 0.5, 0.75, 1.0]}},
            reference={"method": "data_pruning_kd", "params": {"keep": 1.0, "search": [0.0, 0.25, 0.5, 0.75, 1.0]}},
            tasks=["prune-noisy"],
            kind="noninferior",
            note="the best weight of the teacher does not grow with the fraction that is kept",
        ),
    ],
    departures=[
        "the schedule of alpha over f is a straight line between its ends, of which the paper gives the tendency",
        "the teacher is larger than the student by default; teacher = equal is the self-distillation of the paper",
        "scores are taken after 100 steps of five trainings",
    ],
)

MEMORIZATION_SHARE = 0.7
"""Of the samples that each network of the memorisation score learns from (Feldman and Zhang, 2020)."""
RIDGE = {"samples": 400, "width": 40, "sigma": 2.0, "lam": 1.0, "draws": 2000}
"""The linear problem: isotropic inputs, true weights of unit length; ``draws`` of the noise in the simulation."""


class DataPruningKdParams(Params):
    """What is kept, and how the student learns from it."""

    keep: float = Field(0.25, gt=0, le=1, description="f, the fraction of the training samples that is kept")
    score: Literal["random", "el2n", "grand", "forgetting", "memorization", "margin", "entropy"] = Field(
        "random", description="what samples are kept by"
    )
    which: Literal["hardest", "easiest", "moderate"] = Field("hardest", description="end of the score that is kept")
    balanced: bool = Field(False, description="whether the same fraction of each class is kept")
    runs: int = Field(5, ge=2, le=100, description="short trainings that scores are averaged over")
    score_steps: int = Field(100, ge=1, description="steps of each")
    alpha: float | None = Field(None, ge=0, le=1, description="weight of the divergence; null: falls with keep")
    search: list[float] = Field([], description="weights tried on validation data instead, each with all steps")
    curve: list[float] = Field([], description="further fractions whose students count for the area only")
    temperature: float = Field(4.0, gt=0, le=100, description="softens both networks' distributions")
    teacher: str = Field("default", description="name of the task's teacher, such as default, equal, small")


def auto_alpha(keep):
    """From 1 at a fraction of 0.1 along a straight line to 0.5 at 1."""
    return 1.0 - 0.5 * (max(keep, 0.1) - 0.1) / 0.9


def student_loss(logits, teacher, labels, alpha, temperature):
    """Named terms; ``teacher`` may be None where alpha is 0."""
    terms = {}
    if alpha < 1:
        terms["ce"] = (1 - alpha) * cross_entropy(logits, labels)
    if alpha > 0:
        terms["kd"] = alpha * kd_kl(logits, teacher, temperature)
    return terms


# --- scores -----------------------------------------------------------------------------------------------------------


def short_run(task, params, labels, number):
    """One short training on all samples, or on a random part for the memorisation score: network, part, forgetting."""
    split, part, seen = task.split("train"), None, Forgetting(len(labels), task.device)
    if params.score == "memorization":
        order = torch.randperm(len(labels), generator=task.generator(f"part-{number}"))
        part = order[: max(1, round(MEMORIZATION_SHARE * len(labels)))].to(split.y.device)
    with task.seeded(f"score-{number}"):
        model = task.build_student().to(task.device)

    def loss(model, batch):
        logits, y = model(batch.x), labels[batch.index]
        seen.see(batch.index, logits.argmax(1) == y)
        return F.cross_entropy(logits.float(), y)

    loader = task.train_loader(indices=part, purpose=f"score-{number}")
    tag = f"score{number}"
    task.fit(model, loss, loader=loader, steps=params.score_steps, spend="aux_steps", state=[seen], tag=tag)
    return model, part, seen


SCORES = {
    "el2n": lambda probs, features, labels, seen: el2n(probs, labels),
    "grand": lambda probs, features, labels, seen: grand(probs, labels, features),
    "forgetting": lambda probs, features, labels, seen: seen.scores().cpu(),
    "margin": lambda probs, features, labels, seen: margin_informativeness(probs),
    "entropy": lambda probs, features, labels, seen: entropy(probs),
}


def scores(task, params, labels):
    """(N,) score of each training sample, on the CPU; uniform random numbers for ``random``."""
    if params.score == "random":
        return torch.rand(len(labels), generator=task.generator("random"))
    x, y, each, included = task.split("train").x, labels.cpu(), [], []
    for number in range(params.runs):
        model, part, seen = short_run(task, params, labels, number)
        probs, features = outputs(model, x, task.device)
        if params.score == "memorization":
            included.append(torch.isin(torch.arange(len(y)), part.cpu()))
            each.append(probs.argmax(1) == y)
        else:
            each.append(SCORES[params.score](probs, features, y, seen))
    if params.score == "memorization":
        return memorization(torch.stack(each), torch.stack(included))
    return torch.stack(each).mean(0)


# --- students ---------------------------------------------------------------------------------------------------------


def train_student(task, params, rows, alpha, *, tag=""):
    """A student on some of the training samples; with a ``tag`` it is an auxiliary one."""
    student = task.student()

    def loss(model, batch):
        teacher = task.teacher_logits(batch, params.teacher) if alpha > 0 else None
        return student_loss(model(batch.x), teacher, batch.y, alpha, params.temperature)

    spend = "aux_steps" if tag else "steps"
    task.fit(student, loss, loader=task.train_loader(indices=rows), steps=task.budget.steps(), spend=spend, tag=tag)
    return student


def best_alpha(task, params, rows):
    """The weight of those in ``search`` whose student is the most accurate on validation data; ties: the smallest."""
    found = {}
    for alpha in sorted(set(params.search)):
        found[alpha] = task.validate(train_student(task, params, rows, alpha, tag=f"alpha{alpha:g}"))["top1"]
    task.artifact("search.json").write_text(json.dumps(found))
    return max(found, key=found.get)


@hookimpl
def train(task, params):
    wrong = [value for value in params.search if not 0 <= value <= 1] + [f for f in params.curve if not 0 < f <= 1]
    if wrong:
        raise UsageError(f"search has weights in [0, 1] and curve fractions in (0, 1], not {wrong}")
    labels = pseudo_labels(task.split("train"), lambda batch: task.teacher_logits(batch, params.teacher))
    score = scores(task, params, labels)

    def kept(share):
        return prune(score, share, params.which, labels.cpu() if params.balanced else None)

    def alpha_of(share):
        return auto_alpha(share) if params.alpha is None else params.alpha

    rows = kept(params.keep)
    alpha = best_alpha(task, params, rows) if params.search else alpha_of(params.keep)
    for share in params.curve:
        other = train_student(task, params, kept(share), alpha_of(share), tag=f"keep{share:g}")
        save_file(
            {name: tensor.contiguous() for name, tensor in other.state_dict().items()},
            task.artifact(f"keep{share:g}.safetensors"),
        )
    save_file({"scores": score.float(), "rows": rows}, task.artifact("kept.safetensors"))
    task.artifact("kept.json").write_text(json.dumps({"alpha": alpha}))
    return train_student(task, params, rows, alpha)


# --- evaluation -------------------------------------------------------------------------------------------------------


def ridge_report(rng, keep):
    """Expected errors of linear students on a random fraction, at their best alpha and without a teacher, and how far
    a simulation of the noise is from the closed form."""
    n, d, sigma, lam = (RIDGE[name] for name in ("samples", "width", "sigma", "lam"))
    x, w = rng.normal(size=(n, d)), rng.normal(size=d)
    w /= np.linalg.norm(w)
    student = rng.permutation(n)[: max(1, round(keep * n))]
    full = PrunedRidge.of(x, student, np.arange(n), lam)
    same = PrunedRidge.of(x, student, student, lam)
    alpha = full.best_alpha(w, sigma)
    error = full.error(alpha, w, sigma)
    noise = sigma * rng.normal(size=(n, RIDGE["draws"]))
    simulated = np.square(full.bias(alpha, w)[:, None] + full.operator(alpha) @ noise).sum(0).mean()
    return {
        "ridge_error_without_teacher": full.error(0.0, w, sigma),
        "ridge_error": error,
        "ridge_error_teacher_of_same_data": same.error(same.best_alpha(w, sigma), w, sigma),
        "ridge_alpha": alpha,
        "ridge_simulation_gap": float(abs(simulated - error) / error),
    }


@hookimpl
def evaluate(task, model, params):
    """What was kept of the wrongly labelled samples, the area over the fractions, and the linear problem."""
    rows = load_file(task.artifact("kept.safetensors"))["rows"].to(task.device)
    y, truth, test = task.split("train").y, task.truth("train"), task.split("test")
    values = {
        "alpha": json.loads(task.artifact("kept.json").read_text())["alpha"],
        "kept_images": float(len(rows)),
        "kept_classes": float(len(truth[rows].unique())),
    }
    wrong = (y != truth) & (y >= 0)
    if bool(wrong.any()):
        values["kept_wrong_labels"] = float(wrong[rows].float().mean())
        values["wrong_labels_retained"] = float(wrong[rows].sum() / wrong.sum())
    if params.curve:
        curve = {params.keep: accuracy(task.predict(model, test.x), test.y)}
        for share in params.curve:
            other = task.student()
            other.load_state_dict(load_file(task.artifact(f"keep{share:g}.safetensors")))
            curve[share] = accuracy(task.predict(other, test.x), test.y)
        shares = sorted(curve)
        task.artifact("curve.json").write_text(json.dumps({f"{share:g}": curve[share] for share in shares}))
        values["accuracy_area"] = area(shares, [curve[share] for share in shares])
    return task.score(model) | values | ridge_report(task.rng("ridge"), params.keep)
