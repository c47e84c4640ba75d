"""Recursive Meta-Distillation: An Axiomatic Framework for Iterative Knowledge Refinement (Flouro and Chadwick, 2026).
Our reading of the abstract throughout.

Generations of students learn from a *meta-teacher* that mixes the base teachers with the students before it. With B the
mean (or geometric mean) of the base teachers' probabilities, s_n the student of generation n and g < 1,

    q_{n+1} = M(B, s_n),   s_{n+1} = P(q_{n+1}),   M: (1 - g) B + g s   |   B^(1-g) s^g / Z   |   (1 - g) B + g history

P is a freshly initialised student that fits q by KL for a fixed number of steps. ``gamma: 1`` removes the anchor: a
born-again chain, which drifts. ``start`` is generation 0. The returned student fits the last target with the task's
steps; all other generations, and the replicas of which bias and variance are measured, are ``aux_steps``. Targets are
tables over the training images, so that these are not augmented.

For realizable students (P the identity) KL(B || s_n) <= g^n KL(B || s_0), and with projection errors of e at most
TV(s_n, B) <= g^n TV(s_0, B) + e / (1 - g) under linear mixing. Evaluation checks both in float64 on random points of
the simplex for all operators, and the second one on the trained generations; it adds each generation's accuracy,
likelihood and KL to B on the test images.
"""

import json
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.divergences import log_softmax
from kdbench.losses.logits import cross_entropy
from kdbench.tracks.vision import metrics
from kdbench.training import simplex
from kdbench.training.pruning import brier_parts
from kdbench.training.recursion import exact_recursion, predicted_floor, random_points, sampled_recursion

PAPER = Paper(
    slug="recursive_meta_distillation",
    title="Recursive Meta-Distillation: An Axiomatic Framework for Iterative Knowledge Refinement",
    year=2026,
    authors=["Aaron R. Flouro", "Shawn P. Chadwick"],
    arxiv="2601.13100",
    track="vision",
    source="abstract",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "multidomain"],
    requires=["logits"],
    tags=["self-distillation", "multi-teacher", "theory"],
    claims=[
        Compare(
            metric="kl_violation",
            subject="recursive_meta_distillation",
            reference=0.0,
            tasks=["shapetex-large-teacher"],
            kind="noninferior",
            margin=1e-10,
            direction="min",
            note="anchored recursion contracts in KL for every pair of distributions",
        ),
        Compare(
            metric="floor_excess",
            subject="recursive_meta_distillation",
            reference=0.0,
            tasks=["shapetex-large-teacher"],
            kind="noninferior",
            margin=1e-6,
            direction="min",
            note="trained generations stay under the floor that their projection errors predict",
        ),
        Compare(
            metric="kl_drift",
            subject={"method": "recursive_meta_distillation", "params": {"gamma": 1.0}},
            reference=0.0,
            tasks=["shapetex-large-teacher"],
            note="without an anchor, capacity-limited students drift away from the base teachers",
        ),
        Compare(
            metric="kl_base",
            subject="recursive_meta_distillation",
            reference={"method": "recursive_meta_distillation", "params": {"gamma": 1.0}},
            tasks=["shapetex-large-teacher"],
            direction="min",
            note="the anchor keeps the last generation near the base teachers",
        ),
    ],
    departures=[
        "operators, projections, bounds and experiments are our reading of the abstract",
        "generations have the architecture of the task's student; bias and variance are over replicas within a job",
    ],
)


class RecursiveMetaDistillationParams(Params):
    """Base teachers, meta-teacher, and the chain."""

    operator: Literal["linear", "geometric", "history"] = Field("linear", description="how B and students are mixed")
    gamma: float = Field(0.6, ge=0, le=1, description="g, weight of the students; 1 removes the anchor")
    members: list[str] = Field([], description="base teachers by name; empty: all of the task's labels")
    aggregate: Literal["linear", "geometric"] = Field("linear", description="mean of the base teachers")
    weights: list[float] = Field([], description="of the base teachers in that mean; empty: equal")
    temperature: float = Field(1.0, gt=0, le=100, description="softens the base teachers")
    start: Literal["base", "labels", "random"] = Field(
        "base", description="generation 0: fits the base teachers or the labels, or is not trained"
    )
    generations: int = Field(5, ge=1, le=50, description="students after generation 0, without the returned one")
    generation_steps: float = Field(0.4, gt=0, le=100, description="of each of them, as a multiple of the task's limit")
    replicas: int = Field(3, ge=0, le=100, description="further students of the last target, for bias and variance")
    pairs: int = Field(1000, ge=1, le=100_000, description="random pairs of distributions of the exact part")
    exact_generations: int = Field(20, ge=2, le=1000, description="of the exact part")
    samples: int = Field(100, ge=1, le=1_000_000, description="draws of a noisy student of the exact part")


# --- the chain --------------------------------------------------------------------------------------------------------


def members_of(task, params):
    """Names of the base teachers. Raises ``UsageError`` for ones of other labels, and for weights that do not fit."""
    known = [name for name, teacher in task.spec.all_teachers().items() if teacher.target == "label"]
    unknown = [name for name in params.members if name not in known]
    if unknown:
        raise UsageError(f"{task.spec.name} has no teachers {unknown} of its labels; it has {known}")
    names = params.members or known
    if params.weights and (len(params.weights) != len(names) or min(params.weights) < 0 or sum(params.weights) == 0):
        raise UsageError(f"weights are one number for each of {names}, none negative and not all 0")
    return names


def base_of(logits, params):
    """B (N, C) float64 from the logits of each base teacher."""
    parts = [(each.double() / params.temperature).softmax(-1) for each in logits]
    return simplex.AGGREGATES[params.aggregate](parts, params.weights or None)


def project(task, params, name, target, *, final=False):
    """A new student that fits target probabilities (N, C) of the training images; None: the labels."""
    if final:
        model = task.student()
    else:
        with task.seeded(f"generation-{name}"):
            model = task.build_student().to(task.device)
    table = None if target is None else target.float()
    steps = task.budget.steps()

    def loss(model, batch):
        if table is None:
            return cross_entropy(model(batch.x), batch.y)
        return F.kl_div(log_softmax(model(batch.x)), table[batch.index], reduction="batchmean")

    task.fit(
        model,
        loss,
        loader=task.train_loader(augment=False),
        steps=steps if final else max(1, round(params.generation_steps * steps)),
        spend="steps" if final else "aux_steps",
        tag="" if final else name,
    )
    return model


def function_of(task, model):
    """Probabilities (N, C) float64 of a student on the training images, in eval mode."""
    return task.predict(model, task.split("train").x).double().softmax(-1)


def first_generation(task, params, base):
    """Generation 0."""
    if params.start == "random":
        with task.seeded("generation-0"):
            return task.build_student().to(task.device)
    return project(task, params, "0", base if params.start == "base" else None)


@hookimpl
def train(task, params):
    split = task.split("train")
    base = base_of([task.teacher_logits(split.batch(), which) for which in members_of(task, params)], params)
    operator, kept = simplex.META_TEACHERS[params.operator], {}

    def keep(name, model):
        kept.update({f"{name}/{key}": value.detach().cpu().contiguous() for key, value in model.state_dict().items()})

    model = first_generation(task, params, base)
    keep("0", model)
    students, chain, target = [function_of(task, model)], [], base
    chain.append({"tv": float(simplex.total_variation(students[0], base).mean()), "error": 0.0})
    for n in range(1, params.generations + 1):
        target = operator(base, students, params.gamma)
        model = project(task, params, str(n), target)
        keep(str(n), model)
        students.append(function_of(task, model))
        tv = float(simplex.total_variation(students[-1], base).mean())
        chain.append({"tv": tv, "error": float(simplex.total_variation(students[-1], target).mean())})
        task.log(n, generation=n, kl_base=simplex.kl(base, students[-1]).mean(), tv_base=tv)
    for r in range(params.replicas):
        keep(f"replica{r}", project(task, params, f"replica{r}", target))
    save_file(kept, task.artifact("generations.safetensors"))
    task.artifact("chain.json").write_text(json.dumps(chain, indent=1) + "\n")
    return project(task, params, "last", operator(base, students, params.gamma), final=True)


# --- evaluation -------------------------------------------------------------------------------------------------------


def exact_part(task, params, gammas=(0.3, 0.6, 0.9)):
    """Contraction and error floor on random distributions, for each operator, number of classes and weight g."""
    rows, generator, checks = [], task.generator("exact"), []
    for classes in (10, 30):
        base, start = (random_points(params.pairs, classes, generator) for _ in range(2))
        for name, operator in simplex.META_TEACHERS.items():
            checks.append(max(simplex.meta_violations(operator, base[:100], start[:100]).values()))
            for gamma in gammas:
                made = exact_recursion(operator, base, start, gamma, params.exact_generations)
                row = {"classes": classes, "operator": name, "gamma": gamma, "rate": made.rate()}
                rows.append(row | {"violation": made.violation, "last": float(made.divergences[-1].max())})
        for gamma in gammas:
            excess = sampled_recursion(base, start, gamma, params.exact_generations, params.samples, generator)
            rows.append({"classes": classes, "operator": "sampled", "gamma": gamma, "excess": excess})
    task.artifact("exact.json").write_text(json.dumps(rows, indent=1) + "\n")
    anchored = [row for row in rows if "rate" in row]
    mine = [row["rate"] for row in anchored if row["operator"] == params.operator]
    return {
        "axiom_violation": max(checks),
        "kl_violation": max(row["violation"] for row in anchored),
        "rate_over_gamma": max(row["rate"] / row["gamma"] for row in anchored if row["operator"] != "history"),
        "contraction_slope": float(np.polyfit(np.log([0.3, 0.6, 0.9] * 2), np.log(mine), 1)[0]),
        "sampled_excess": max(row["excess"] for row in rows if "excess" in row),
    }


def floor_part(params, chain):
    """Where the trained generations end, beside what their own projection errors allow under linear mixing."""
    errors = [each["error"] for each in chain[1:]]
    bounds = [predicted_floor(params.gamma, chain[0]["tv"], errors[:n]) for n in range(1, len(chain))]
    values = {"tv_floor": chain[-1]["tv"], "tv_floor_bound": bounds[-1], "projection_error": float(np.mean(errors))}
    if params.operator == "linear":
        values["floor_excess"] = max(0.0, *(each["tv"] - bound for each, bound in zip(chain[1:], bounds, strict=True)))
    return values


@hookimpl
def evaluate(task, model, params):
    """The exact part, the error floor, and the generations on the test images."""
    test, networks = task.split("test"), load_file(task.artifact("generations.safetensors"))
    teachers = [task.predict(task.teacher(which), test.x) for which in members_of(task, params)]
    base = base_of(teachers, params)
    with task.seeded("evaluation"):
        network = task.build_student().to(task.device)

    def logits_of(name):
        network.load_state_dict({k.partition("/")[2]: v for k, v in networks.items() if k.startswith(f"{name}/")})
        return task.predict(network, test.x)

    rows = []
    for n in range(params.generations + 1):
        logits = logits_of(str(n))
        divergence = float(simplex.kl(base, logits.double().softmax(-1)).mean())
        scores = {"top1": metrics.accuracy(logits, test.y), "nll": metrics.nll(logits, test.y)}
        rows.append({"generation": n, **scores, "kl_base": divergence})
    task.artifact("generations.json").write_text(json.dumps(rows, indent=1) + "\n")
    last = task.predict(model, test.x).double().softmax(-1)
    own = {
        "kl_base": rows[-1]["kl_base"],
        "kl_drift": float(np.polyfit(range(len(rows)), [row["kl_base"] for row in rows], 1)[0]),
        "kl_base_returned": float(simplex.kl(base, last).mean()),
        "generation0_top1": rows[0]["top1"],
        "generation_top1": rows[-1]["top1"],
        "base_top1": metrics.accuracy(base, test.y),
    }
    if params.replicas:
        names = [str(params.generations), *(f"replica{r}" for r in range(params.replicas))]
        probs = torch.stack([logits_of(name).softmax(-1) for name in names])
        parts = brier_parts(probs, F.one_hot(test.y, task.num_classes))
        own |= {"bias2": parts.bias2, "variance": parts.variance}
    chain = json.loads(task.artifact("chain.json").read_text())
    return task.score(model) | own | floor_part(params, chain) | exact_part(task, params)
