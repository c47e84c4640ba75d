"""DisWOT: Student Architecture Search for Distillation WithOut Training (Dong, Li and Wei, CVPR 2023).

The student is chosen for the teacher before anything is trained. Teacher and candidate are freshly initialised and see
one mini-batch (section 3.2). With F the last stage before pooling, flattened per sample, and G the gradient of the
cross-entropy in the last linear layer's weight, which tells like a class activation map where a class is seen,

    relation   M_r = - |gram(F_t) - gram(F_s)|^2 / B^2      gram(A): A A^T with rows of unit length
    semantic   M_s = - |gram(G_t) - gram(G_s)|^2 / C        (C, C); the released form correlates channels (D, D)
    DisWOT     M_r + M_s, averaged over initialisations and batches; 0, the maximum, for the teacher itself

Aging evolution (section 3.3) under the space's caps maximises the score: a tournament, one choice mutated, the child
joins, the oldest leaves. The winner is trained by distillation; the same two distances between trained features can be
added to its loss (section 3.4). Other scores and a random search run through the same code.

The score of every network in the task's table of accuracies is written while training. Evaluation correlates them with
the distilled (headline of the paper) and vanilla test accuracies of the table. The wall-clock of the search, and what a
search that trains every candidate would have taken, are meters and in ``search.json``.
"""

import json
import time
from statistics import fmean, pstdev
from typing import Literal

import torch
from scipy.stats import kendalltau, spearmanr

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses import features
from kdbench.losses.logits import cross_entropy, hard_labels, kd_kl
from kdbench.tracks.vision.spaces import label_loss
from kdbench.training import proxies
from kdbench.training.evolution import aging_evolution, best

PAPER = Paper(
    slug="diswot",
    title="DisWOT: Student Architecture Search for Distillation WithOut Training",
    year=2023,
    authors=["Peijie Dong", "Lujun Li", "Zimian Wei"],
    venue="CVPR 2023",
    arxiv="2303.15678",
    url="https://github.com/lilujunai/DisWOT-CVPR2023",
    track="vision",
    source="code",
    tasks=["search"],
    requires=["logits"],
    tags=["architecture-search", "zero-cost", "relations"],
    claims=[
        Compare(
            metric="kendall_tau",
            subject="diswot",
            reference={"method": "diswot", "params": {"score": "naswot"}},
            tasks=["digits-search", "search"],
            note="ranks students by their distilled accuracy better than a score that does not know the teacher",
        )
    ],
    departures=[
        "the semantic term compares classes (C, C) in place of channels (D, D): teacher and students differ in width",
        "both terms are divided by their spread over the initial population: their scales differ by the batch size",
        "the parent is the best of the tournament; the released search draws it from the five worst",
        "a space of small residual networks with a cap on parameters in place of NAS-Bench-201",
    ],
)


class DiswotParams(Params):
    """Score, search, and loss of the winner."""

    score: Literal[
        "diswot", "relation", "semantic", "naswot", "synflow", "grad_norm", "parameters", "flops", "random", "trained"
    ] = Field("diswot", description="what the search maximises; trained: validation accuracy after a short training")
    search: Literal["evolution", "random"] = Field("evolution", description="random: the best of random networks")
    evaluations: int = Field(60, ge=1, le=5000, description="networks that are scored, repetitions included")
    population: int = Field(20, ge=1, le=1000, description="of the evolution; the paper has 36")
    sample: int = Field(5, ge=1, le=1000, description="networks in a tournament; the paper has 8")
    batch: int = Field(64, ge=2, le=1024, description="images of the mini-batch")
    repeats: int = Field(3, ge=1, le=32, description="initialisations and batches that a score is averaged over")
    semantic: Literal["classes", "channels"] = Field(
        "classes", description="channels: as released, for a teacher of the students' width"
    )
    scale: bool = Field(
        True, description="divide both terms by their spread over the initial population; else add them"
    )
    proxy_steps: int = Field(40, ge=1, le=10000, description="of a training where the score is trained")
    weight: float = Field(0.9, ge=0, le=1, description="of the divergence in the winner's loss")
    temperature: float = Field(4.0, gt=0, le=100, description="of the divergence")
    w_relation: float = Field(0.0, ge=0, description="weight of the relation distance in the winner's loss")
    w_semantic: float = Field(0.0, ge=0, description="weight of the semantic distance (classes) in the winner's loss")


# --- scores -----------------------------------------------------------------------------------------------------------


def view(model, batch):
    """What is compared of a network: (features before pooling, gradient of the classifier's weight)."""
    taps = model.train().taps(batch.x)  # normalised by the batch: an untrained network has no other statistics
    (gradient,) = torch.autograd.grad(cross_entropy(taps.logits, batch.y), model.head().weight)
    return taps.stages[-1].detach(), gradient


def terms(student, teacher, semantic="classes"):
    """(relation, semantic) of two views: both at most 0, and 0 for equal ones. ``UsageError`` for unequal channels."""
    if semantic == "channels" and student[1].shape != teacher[1].shape:
        raise UsageError("channels are compared between equal widths only; use semantic: classes")
    distance = features.class_similarity if semantic == "classes" else features.channel_correlation
    return (
        -float(features.similarity_preserving(student[0], teacher[0])),
        -float(distance(student[1], teacher[1])),
    )


class Scorer:
    """Scores of the space's networks, each computed once: a list with one value per repetition."""

    def __init__(self, task, params):
        self.task, self.params, self.known, self.parts = task, params, {}, {}
        self.scales = (1.0, 1.0)
        if params.score == "random":
            self.rng = task.rng("random-scores")
        self.batches, self.teachers = [], []
        for repeat in range(params.repeats):
            loader = task.train_loader("labeled", params.batch, augment=False, purpose=f"score-batch-{repeat}")
            self.batches.append(next(iter(loader)))
            with task.seeded(f"score-teacher-{repeat}"):
                teacher = task.build_teacher().to(task.device)
            self.teachers.append(view(teacher, self.batches[-1]))

    def candidate(self, arch, repeat):
        with self.task.seeded(f"score-student-{repeat}"):
            return self.task.space.build(arch).to(self.task.device)

    def distances(self, arch):
        """(relation, semantic) of each repetition."""
        if arch not in self.parts:
            self.parts[arch] = [
                terms(view(self.candidate(arch, r), self.batches[r]), self.teachers[r], self.params.semantic)
                for r in range(self.params.repeats)
            ]
        return self.parts[arch]

    def calibrate(self, archs):
        """Set the scales to the spread of the terms over some networks; a term without spread keeps its size."""
        means = [[fmean(each[k] for each in self.distances(arch)) for arch in archs] for k in (0, 1)]
        self.scales = tuple(pstdev(values) or 1.0 for values in means)

    def compute(self, arch):
        kind, space = self.params.score, self.task.space
        if kind in ("diswot", "relation", "semantic"):
            use = (kind != "semantic", kind != "relation")
            return [sum(u * t / s for u, t, s in zip(use, each, self.scales)) for each in self.distances(arch)]
        if kind in ("parameters", "flops"):
            return [float(space.parameters(arch) if kind == "parameters" else space.macs(arch))]
        if kind == "random":
            return [float(self.rng.random())]
        if kind == "trained":
            return [self.train(arch)]
        return [self.proxy(arch, repeat) for repeat in range(self.params.repeats)]

    def proxy(self, arch, repeat):
        model, batch = self.candidate(arch, repeat), self.batches[repeat]
        if self.params.score == "naswot":
            return proxies.naswot(model, batch.x)
        if self.params.score == "synflow":
            return proxies.synflow(model, tuple(batch.x.shape[1:]))
        return proxies.grad_norm(model, batch.x, batch.y)

    def train(self, arch):
        """Validation accuracy after a short training by the labels."""
        model, steps = self.task.student(arch), self.params.proxy_steps
        loader = self.task.train_loader("labeled")
        self.task.fit(model, label_loss, loader=loader, steps=steps, spend="aux_steps", tag=arch)
        return self.task.validate(model)["top1"]

    def __call__(self, arch):
        """Mean over the repetitions."""
        if arch not in self.known:
            self.known[arch] = self.compute(arch)
        return fmean(self.known[arch])


# --- search and training ----------------------------------------------------------------------------------------------


def run_search(task, params, scorer):
    """[(architecture, score)] in the order in which they were scored."""
    rng = task.rng("search")
    initial = [task.space.random(rng) for _ in range(params.population)]
    if params.score == "diswot" and params.scale:
        scorer.calibrate(initial)
    if params.search == "random":
        return [(arch, scorer(arch)) for arch in (task.space.random(rng) for _ in range(params.evaluations))]
    return aging_evolution(
        initial, task.space.mutate, scorer, sample=params.sample, evaluations=params.evaluations, rng=rng
    )


def distill(task, params, arch):
    """The winner, trained by distillation and, where they have a weight, the two distances."""
    student = task.student(arch)
    extra = params.w_relation > 0 or params.w_semantic > 0

    def loss(model, batch):
        taps = model.taps(batch.x)
        teacher = task.teacher_taps(batch) if extra else None
        logits = teacher.logits if extra else task.teacher_logits(batch)
        parts = {
            "ce": (1 - params.weight) * cross_entropy(taps.logits, batch.y),
            "kd": params.weight * kd_kl(taps.logits, logits, params.temperature),
        }
        if params.w_relation:
            gap = features.similarity_preserving(taps.stages[-1], teacher.stages[-1])
            parts["relation"] = params.w_relation * gap
        if params.w_semantic:
            y = hard_labels(batch.y, logits)
            mine, theirs = (features.head_gradient(t.penult, t.logits, y) for t in (taps, teacher))
            parts["semantic"] = params.w_semantic * features.class_similarity(mine, theirs)
        return parts

    return student, task.fit(student, loss)


@hookimpl
def train(task, params):
    if params.sample > params.population:
        raise UsageError(f"a tournament of {params.sample} does not fit a population of {params.population}")
    scorer, started = Scorer(task, params), time.perf_counter()
    history = run_search(task, params, scorer)
    seconds, scored = time.perf_counter() - started, len({arch for arch, _ in history})
    winner = best(history)[0]
    listed = task.space.listed()
    table = {arch: {"score": scorer(arch), "spread": pstdev(scorer.known[arch])} for arch in listed}
    if params.score == "diswot":
        for arch in listed:
            relation, semantic = zip(*scorer.distances(arch), strict=True)
            table[arch] |= {"relation": fmean(relation), "semantic": fmean(semantic)}
    student, result = distill(task, params, winner)
    trained_seconds = scored * task.spec.search.steps * result.seconds / result.steps
    task.budget.set("search_seconds", seconds)
    task.budget.set("trained_search_seconds", trained_seconds)
    made = {
        "winner": winner,
        "scored": scored,
        "seconds": seconds,
        "seconds_if_every_candidate_were_trained": trained_seconds,
        "scales": scorer.scales,
        "history": history,
        "table": table,
    }
    task.artifact("search.json").write_text(json.dumps(made))
    return student


def correlations(scores, accuracies):
    """(Kendall's tau-b, Spearman's rho) of two lists; 0 where either is constant: it says nothing about the other."""
    if len(set(scores)) < 2 or len(set(accuracies)) < 2:
        return 0.0, 0.0
    return float(kendalltau(scores, accuracies).statistic), float(spearmanr(scores, accuracies).statistic)


@hookimpl
def evaluate(task, model):
    made, accuracies = json.loads(task.artifact("search.json").read_text()), task.trained("test")
    archs = list(made["table"])
    vanilla, distilled = zip(*(accuracies[arch] for arch in archs), strict=True)
    values = {}
    scores = [made["table"][arch]["score"] for arch in archs]
    for suffix, target in (("", distilled), ("_vanilla", vanilla)):
        values[f"kendall_tau{suffix}"], values[f"spearman{suffix}"] = correlations(scores, target)
    for part in ("relation", "semantic"):
        if part in made["table"][archs[0]]:
            each = [made["table"][arch][part] for arch in archs]
            values[f"kendall_tau_{part}"], values[f"spearman_{part}"] = correlations(each, distilled)
    spread = fmean(row["spread"] for row in made["table"].values())
    return (
        task.score(model)
        | values
        | {
            "score_noise": spread / (pstdev(scores) or 1.0),
            "scored": float(made["scored"]),
            "found_parameters": float(task.space.parameters(made["winner"])),
            "found_macs": task.space.macs(made["winner"]),
            "table_best_distilled": max(distilled),
        }
    )
