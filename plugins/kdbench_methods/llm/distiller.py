"""Distiller: which part of a distillation pipeline matters, and which pipeline a task should get.

He, Shi, Mueller, Zha, Li and Karypis, SustaiNLP 2021. A pipeline has five slots:

    augment       none, tokens (masked or replaced), order (swapped or deleted), mixup (of embeddings)
    prediction    soft targets: cross-entropy at ``temperature`` (times T^2), or the squared distance of logits
    intermediate  none, mse, l2_mse, cosine, infonce, or mi: the bound I_alpha on mutual information
    layers        last, uniform, or transport: the pairs of hidden states that the intermediate loss compares
    hard          weight of the labels

    L = (1 - hard) L_prediction + hard CE + weight L_intermediate

All intermediate losses are seen as bounds on the mutual information of the two networks' features. I_alpha (Poole et
al., ICML 2019) lies between InfoNCE (alpha = 1: at most log K, low variance) and the bound of Nguyen, Wainwright and
Jordan (alpha = 0: no such limit, high variance); its critic is the cosine of learned projections, and each half of a
batch has its samples from outside in the other. Teacher and student read the same augmented texts.

The method runs the pipeline that its parameters name. With ``search`` it looks for one first: ``candidates`` pipelines
of the product space are trained on the training data and scored on the validation data, all at once (``random``) or by
successive halving (``halving``), for ``search_steps`` times the task's steps in all, charged as ``aux_steps``; then the
winner is trained like any other. ``evaluate`` adds the ratio of student to teacher, the shares of the validation
score's variance that each slot explains among the candidates (functional ANOVA of a forest), and the quality of the
estimator on Gaussian pairs of known information. ``pipelines.json`` lists what was trained; from the lists of many
tasks ``kdbench.tracks.llm.blocks.autodistiller.study`` recommends pipelines for unseen tasks (AutoDistiller).

GLUE, SQuAD and pretrained encoders are out of reach at this scale, as is contextual augmentation by a language model.
"""

import json
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.divergences import ce_soft
from kdbench.losses.information import estimator_quality
from kdbench.losses.logits import widen
from kdbench.tracks.llm.blocks.augment import Augmenter, pooled
from kdbench.tracks.llm.blocks.autodistiller import ARTIFACT, SPACE, features, importance, point_of, updates
from kdbench.tracks.llm.networks.models import token_nll
from kdbench.tracks.llm.networks.taps import ready
from kdbench.training.halving import sample_product, successive_halving, winner
from kdbench.training.intermediate import LayerMatch
from kdbench.training.selection import per_class

INFORMATION = 5.0
"""Nats between the Gaussian pairs that the estimator is tried on; more than log K."""

PAPER = Paper(
    slug="distiller",
    title="Distiller: A Systematic Study of Model Distillation Methods in Natural Language Processing",
    year=2021,
    authors=["Haoyu He", "Xingjian Shi", "Jonas Mueller", "Sheng Zha", "Mu Li", "George Karypis"],
    venue="SustaiNLP",
    track="llm",
    arxiv="2109.11105",
    url="https://aclanthology.org/2021.sustainlp-1.13",
    source="paper",
    tasks=["classify"],
    requires=["logits", "features", "labels"],
    tags=["off-policy", "features", "mutual-information", "augmentation", "search"],
    claims=[
        Compare(
            metric="importance_gap",
            subject={"method": "distiller", "params": {"search": "random"}},
            reference=0.0,
            tasks=["classify-reviews", "classify-docstrings"],
            note="The intermediate loss explains more of the score's variance than the loss of the predictions.",
        ),
        Compare(
            metric="accuracy",
            subject="distiller",
            reference={"method": "distiller", "params": {"intermediate": "mse"}},
            tasks=["classify-reviews", "classify-docstrings"],
            note="Mutual information is a better objective for hidden states than the squared distance.",
        ),
        Compare(
            metric="accuracy",
            subject="distiller",
            reference={"method": "distiller", "params": {"intermediate": "none"}},
            tasks=["classify-reviews", "classify-docstrings"],
            note="Intermediate distillation improves on the predictions alone.",
        ),
        Compare(
            metric="accuracy",
            subject={"method": "distiller", "params": {"augment": "tokens", "share": 0.1}},
            reference={"method": "distiller", "params": {"share": 0.1}},
            tasks=["classify-reviews", "classify-docstrings"],
            note="Augmentation is a large gain where there are few data.",
        ),
        Compare(
            metric="infonce_largest",
            subject="distiller",
            reference=0.0,
            tasks=["classify-reviews", "classify-docstrings"],
            kind="noninferior",
            margin=1e-6,
            direction="min",
            note="The InfoNCE bound never exceeds log K.",
        ),
        Compare(
            metric="mi_largest",
            subject="distiller",
            reference=0.0,
            tasks=["classify-reviews", "classify-docstrings"],
            direction="max",
            note="With alpha below 1 the bound can exceed log K.",
        ),
    ],
    departures=[
        "encoders trained on the tasks instead of pretrained ones; no contextual augmentation and no back-translation",
        "samples from outside the batch are those of its other half, so that they get gradients, too",
        "layers are compared by their mean over tokens, the embeddings counted as a layer",
        "the features of tasks and the regression of AutoDistiller are our reading",
    ],
)


class DistillerParams(Params):
    """The five slots, what belongs to them, and the search."""

    augment: Literal["none", "tokens", "order", "mixup"] = Field("none", description="how texts are changed")
    augment_share: float = Field(0.5, gt=0, le=1, description="of the rows that are changed")
    augment_rate: float = Field(0.1, gt=0, le=1, description="tokens, order: share of a row's tokens")
    mixup_alpha: float = Field(0.4, gt=0, le=100, description="mixup: of the Beta distribution of the shares")
    prediction: Literal["none", "ce", "mse"] = Field("ce", description="loss of the logits; none: the labels alone")
    temperature: float = Field(1.0, gt=0, le=100, description="ce: of both distributions")
    intermediate: Literal["none", "mse", "l2_mse", "cosine", "infonce", "mi"] = Field(
        "mi", description="loss of hidden states; mi: -I_alpha"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="mi: between the bound of NWJ (0) and InfoNCE (1)")
    layers: Literal["last", "uniform", "transport"] = Field("last", description="which pairs of layers are compared")
    weight: float = Field(
        0.02, ge=0, le=1000, description="of the intermediate loss; its gradients are far larger than the prediction's"
    )
    critic_temperature: float = Field(0.5, gt=0, le=100, description="infonce, mi: divides the cosines")
    critic_dim: int = Field(64, ge=1, le=65536, description="infonce, mi: width of the projections")
    pooling: Literal["mean", "first"] = Field("mean", description="hidden states of a row: mean over tokens, or first")
    hard: float = Field(0.0, ge=0, le=1, description="weight of the labels; the prediction loss has the rest")
    share: float = Field(1.0, gt=0, le=1, description="of the training rows of each class that may be used")
    search: Literal["none", "random", "halving"] = Field(
        "none", description="look for a pipeline first, which replaces the slots given here"
    )
    candidates: int = Field(6, ge=2, le=10_000, description="search: pipelines that are tried")
    search_steps: float = Field(2.0, gt=0, le=10_000, description="search: steps in all, as a multiple of the task's")
    rungs: int = Field(2, ge=2, le=20, description="halving: trainings of a pipeline that goes through to the end")
    keep: float = Field(0.5, gt=0, lt=1, description="halving: share that goes on from each rung")


# --- one pipeline -----------------------------------------------------------------------------------------------------


def matcher(task, student, params):
    """Projections and loss of the hidden states, or None."""
    if params.intermediate == "none" or params.weight == 0:
        return None
    shapes = [(net.config.num_hidden_layers + 1, net.config.hidden_size) for net in (student, task.teacher())]
    options = {"alpha": params.alpha, "temperature": params.critic_temperature, "dim": params.critic_dim}
    with task.seeded("projections"):
        return LayerMatch(params.intermediate, params.layers, *shapes, **options).to(task.device)


def run_pipeline(task, params, **fit):
    """A student trained by the pipeline; ``fit`` goes to ``task.fit``."""
    student, teacher = ready(task.student()), task.teacher()
    match = matcher(task, student, params)
    options = {"rate": params.augment_rate, "share": params.augment_share, "alpha": params.mixup_alpha}
    augment = Augmenter(params.augment, task.tokenizer, task.rng("augment"), **options)

    def loss(model, batch):
        view, parts = augment(batch), {}
        ours = view.read(model)
        if params.hard > 0:
            parts["hard"] = params.hard * view.label_loss(lambda labels: token_nll(ours.logits, labels))
        if match is None and (params.hard == 1 or params.prediction == "none"):
            return parts
        with torch.no_grad():
            theirs = view.read(teacher)
        if params.prediction == "ce" and params.hard < 1:
            values = ce_soft(ours.logits, theirs.logits, temperature=params.temperature)
            parts["soft"] = (1 - params.hard) * values.mean()
        elif params.prediction == "mse" and params.hard < 1:
            gap = widen(ours.logits) - widen(theirs.logits)
            parts["soft"] = (1 - params.hard) * gap.square().mean()
        if match is not None:
            states = (pooled(each.hidden_states, view.mask, params.pooling) for each in (ours, theirs))
            parts["intermediate"] = params.weight * match(*states)
        return parts

    loader = None
    if params.share < 1:
        labels = task.split("train").sequences.labels
        loader = task.train_loader(rows=per_class(labels, params.share, task.generator("share")))
    task.fit(student, loss, loader=loader, modules=[] if match is None else [match], **fit)
    return student


@hookimpl
def train(task, params):
    if params.hard == 0 and params.prediction == "none":
        raise UsageError("nothing teaches the classifier: set prediction to ce or mse, or hard above 0")
    limit, name = task.spec.limits["steps"], task.spec.headline.name
    ceiling = task.validate(task.teacher())[name]
    trained = []

    def trial(point, steps, spend="aux_steps"):
        chosen = params.model_copy(update=updates(point))
        student = run_pipeline(task, chosen, steps=steps, spend=spend, tag="search" if spend == "aux_steps" else "")
        score = task.validate(student)[name]  # more is better for all classification tasks
        trained.append({"point": point, "share": steps / limit, "score": score, "ratio": score / max(ceiling, 1e-6)})
        return student, score

    best = point_of(params)
    if params.search != "none":
        points = sample_product(SPACE, params.candidates, task.rng("candidates"))
        rungs, total = params.rungs if params.search == "halving" else 1, round(params.search_steps * limit)
        try:
            trials = successive_halving(points, lambda *one: trial(*one)[1], total=total, rungs=rungs, keep=params.keep)
        except ValueError as error:
            raise UsageError(f"search_steps: {error}") from error
        best = winner(trials).candidate
    student, _ = trial(best, int(task.budget.remaining("steps")), "steps")
    record = {"task": {"features": features(task, ceiling)}, "trained": trained}
    task.artifact(ARTIFACT).write_text(json.dumps(record, indent=1) + "\n")
    return student


@hookimpl
def evaluate(task, model, params):
    """Distillation ratio; of a search the shares of the slots; how good the estimator is where the truth is known."""
    name = task.spec.headline.name
    scores = task.score(model)
    values = {"distillation_ratio": scores[name] / max(task.score(task.teacher())[name], 1e-6)}
    for label, alpha in (("infonce", 1.0), ("mi", params.alpha)):
        quality = estimator_quality(alpha, INFORMATION, task.generator("gaussian"), batches=50)
        values |= {f"{label}_{measure}": value for measure, value in quality.items()}
    trained = json.loads(task.artifact(ARTIFACT).read_text())["trained"]
    if params.search != "none":
        first = [one for one in trained[:-1] if one["share"] == trained[0]["share"]]
        shares = importance([one["point"] for one in first], [one["score"] for one in first])
        values |= {f"importance_{slot}": shares[slot] for slot in SPACE}
        values["importance_gap"] = shares["intermediate"] - shares["prediction"]
        tried = [one["score"] for one in first]
        values["search_gain"] = trained[-1]["score"] - sum(tried) / len(tried)
        task.artifact("importance.json").write_text(json.dumps(shares, indent=1) + "\n")
    return scores | values
