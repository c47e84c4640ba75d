"""ProKD: Unsupervised Prototypical Knowledge Distillation for Zero-Resource Cross-Lingual NER (Ge et al., AAAI 2023).

A tagger of a labelled source language teaches one of a target language that has no labels. Two stages, both about
prototypes: mean features of the words of a tag, which follow the network by a moving average (``ema``).

The teacher learns the source's tags, and to have the languages' prototypes in the same places: with s_k of the source's
tags and t_k of the teacher's own tags of the target,

    L = CE(source) + align * A
    A = -mean_k [log softmax_j(cos(s_k, t_j) / tau)_k + log softmax_j(cos(t_k, s_j) / tau)_k] / 2

Most words are O: its prototypes weigh ``o_weight``, and are left out where more than ``o_limit`` of the words are O.

The student sees target sentences alone. It learns the teacher's distribution p of each word (KL or MSE), and pseudo-
labels that its own features have a say in: with c_k its prototypes of the target,

    w = softmax(-d(f, c)^2 / tau),   label = argmax(p * w),   L = kd_weight * KD + self_weight * CE(label, q)

with the CE over words of which ``p * w``, normalised, is at least ``threshold`` sure. The prototypes follow features of
those. Self-training begins after a ``warmup``, in which the prototypes follow the teacher's labels.

``align: 0`` tunes the teacher without alignment, ``teacher_steps: 0`` takes the task's as it is; ``self_training`` is
``hard`` with the teacher's labels alone, and ``none`` for plain distillation on the target. The network that is given
back is the student alone.

Evaluation adds: F1 of the tuned teacher, accuracy and F1 of the pseudo-labels of the training sentences, whose tags
only evaluation knows, and how far apart the prototypes of the two languages are on test sentences, for the task's
teacher (before) and the tuned one (after).
"""

import json
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.divergences import fkl, log_softmax
from kdbench.losses.logits import UNLABELLED
from kdbench.losses.prototypes import Prototypes, alignment_loss, prototype_log_probs, reweighted
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.llm.blocks.entities import by_sentence, span_metrics
from kdbench.tracks.llm.data.ner import TAGS
from kdbench.tracks.llm.kinds.ner import all_words, language_distances, unlabelled
from kdbench.tracks.llm.networks.models import tag_logits, tags_of, token_nll, word_features
from kdbench.training.state import Values

OUTSIDE = TAGS.index("O")

PAPER = Paper(
    slug="prokd_ner",
    title="ProKD: An Unsupervised Prototypical Knowledge Distillation Network for Zero-Resource Cross-Lingual Named "
    "Entity Recognition",
    year=2023,
    authors=["Ling Ge", "Chunming Hu", "Guanghui Ma", "Hong Zhang", "Jihong Liu"],
    venue="AAAI",
    arxiv="2301.08855",
    url="https://doi.org/10.1609/aaai.v37i11.26507",
    track="llm",
    source="paper",
    tasks=["ner2"],
    requires=["logits", "features", "weights"],
    tags=["off-policy", "features", "self-training", "cross-lingual"],
    claims=[
        Compare(
            metric="f1",
            subject={"method": "prokd_ner", "params": {"align": 0.0, "teacher_steps": 0.0, "self_training": "none"}},
            reference="teacher",
            tasks=["ner2"],
            note="Plain distillation on the target is better than the teacher that teaches it.",
        ),
        Compare(
            metric="f1",
            subject="prokd_ner",
            reference={"method": "prokd_ner", "params": {"align": 0.0, "teacher_steps": 0.0, "self_training": "none"}},
            tasks=["ner2"],
            note="Both stages together are better than plain distillation.",
        ),
        Compare(
            metric="prototype_ratio_after",
            subject="prokd_ner",
            reference={"method": "prokd_ner", "params": {"align": 0.0}},
            tasks=["ner2"],
            direction="min",
            note="With the alignment, prototypes of a tag are closer across languages, in relation to other tags.",
        ),
    ],
    departures=[
        "no pre-trained multilingual encoder: small ones from random weights, and languages that share words and names",
        "the alignment tunes a teacher that was trained on the source before, so that its labels mean something",
        "a prototype has the gradient of its batch's mean; 1 - ema of it would leave nothing to learn",
        "weights, threshold, warm-up, distances on the unit sphere and a prototype for each BIO tag are our reading",
        "a tag without a prototype is as likely as the nearest one, or it would never get one",
    ],
)


class ProkdNerParams(Params):
    """Both stages, and what may be left out of them."""

    align: float = Field(1.0, ge=0, le=100, description="weight of the alignment in the teacher's loss")
    teacher_steps: float = Field(1.0, ge=0, le=100, description="the teacher's tuning, in steps of the task's limit")
    teacher_lr: float = Field(1e-3, gt=0, le=1, description="peak learning rate of the teacher's tuning")
    ema: float = Field(0.99, ge=0, lt=1, description="what prototypes keep of themselves in a step")
    tau: float = Field(0.1, gt=0, le=100, description="temperature of alignment and of prototype probabilities")
    o_weight: float = Field(0.1, ge=0, le=1, description="weight of the tag O in the alignment; the others have 1")
    o_limit: float = Field(0.5, ge=0, le=1, description="share of the words above which O is left out of the alignment")
    kd: Literal["kl", "mse"] = Field("kl", description="what of the teacher's distributions is learned by")
    kd_weight: float = Field(1.0, ge=0, le=1000, description="weight of the distillation")
    temperature: float = Field(1.0, gt=0, le=100, description="of kl, with its square as factor")
    self_training: Literal["prototype", "hard", "none"] = Field(
        "prototype", description="pseudo-labels of teacher and prototypes, of the teacher alone, or none"
    )
    self_weight: float = Field(1.0, ge=0, le=1000, description="weight of the cross entropy of pseudo-labels")
    o_self: float = Field(1.0, ge=0, le=1, description="weight of words with pseudo-label O in it; the others have 1")
    threshold: float = Field(0.8, ge=0, le=1, description="least probability of a pseudo-label that is learned")
    warmup: float = Field(0.3, ge=0, lt=1, description="share of the steps before self-training begins")


# --- the teacher's stage ----------------------------------------------------------------------------------------------


def class_weights(labels, params):
    """Weights (C,) of the tags in the alignment; ``labels`` (N,) are the tags of all words of a batch."""
    weights = torch.ones(len(TAGS), device=labels.device)
    dominates = bool((labels == OUTSIDE).float().mean() > params.o_limit)
    weights[OUTSIDE] = 0.0 if dominates else params.o_weight
    return weights


def tuned_teacher(task, params):
    """A copy of the task's teacher that is tuned on source tags, with the prototypes of both languages aligned."""
    teacher = task.teacher(trainable=True)
    source, target = (Prototypes(len(TAGS), teacher.config.hidden_size).to(task.device) for _ in range(2))

    def loss(model, batch):
        features, logits = word_features(model, batch)
        tags = tags_of(batch)
        gold = tags != UNLABELLED
        parts = {"ce": token_nll(logits, tags).sum() / gold.sum().clamp(min=1)}
        tags = torch.where(gold, tags, logits.detach().argmax(-1))
        if params.align > 0:
            s = source.follow(features[gold], tags[gold], params.ema)
            t = target.follow(features[~gold], tags[~gold], params.ema)
            weights = class_weights(tags, params) * (source.known & target.known)
            parts["align"] = params.align * alignment_loss(s, t, weights, params.tau)
        return parts

    steps = max(1, round(params.teacher_steps * task.spec.limits["steps"]))
    task.fit(teacher, loss, steps=steps, spend="aux_steps", tag="teacher", lr=params.teacher_lr, state=[source, target])
    return teacher


# --- the student's stage ----------------------------------------------------------------------------------------------


def distance(logits, teacher, params):
    """What tells the student's distribution from the teacher's, mean over words; logits (N, C)."""
    if params.kd == "kl":
        return tok_mean(fkl(logits, teacher, temperature=params.temperature))
    return tok_mean((log_softmax(logits).exp() - log_softmax(teacher).exp()).square().sum(-1))


@torch.no_grad()
def pseudo_labels(features, teacher, prototypes, params):
    """Labels (N,) and whether they are sure enough (N,), of teacher logits alone where ``prototypes`` is None."""
    log_probs = log_softmax(teacher)
    if prototypes is not None:
        says = prototype_log_probs(features, prototypes.table, prototypes.known, params.tau)
        log_probs = reweighted(log_probs, says)
    sure, labels = log_probs.max(-1)
    return labels, sure.exp() >= params.threshold


@hookimpl
def train(task, params):
    if params.kd_weight == 0 and (params.self_training == "none" or params.self_weight == 0):
        raise UsageError("nothing to learn: give kd_weight, or self_training with a self_weight, a value above 0")
    teacher = task.teacher()
    if params.teacher_steps > 0:
        teacher = task.share(tuned_teacher(task, params))
    student, steps = task.student(), int(task.budget.remaining("steps"))
    prototypes = Prototypes(len(TAGS), student.config.hidden_size).to(task.device)
    seen = Values(steps=0)
    target = unlabelled(task.split("train").sequences).nonzero()[:, 0]

    def loss(model, batch):
        features, logits = word_features(model, batch)
        with torch.no_grad():
            taught = tag_logits(teacher, batch)
        parts = {}
        if params.kd_weight > 0:
            parts["kd"] = params.kd_weight * distance(logits, taught, params)
        if params.self_training != "none":
            started = params.kd_weight == 0 or seen.steps >= params.warmup * steps
            asked = prototypes if started and params.self_training == "prototype" else None
            labels, sure = pseudo_labels(features, taught, asked, params)
            prototypes.follow(features.detach(), labels.masked_fill(~sure, UNLABELLED), params.ema)
            if started:
                weights = sure * torch.where(labels == OUTSIDE, params.o_self, 1.0)
                nll = (weights * token_nll(logits, labels)).sum() / weights.sum().clamp(min=1)
                parts["pseudo"] = params.self_weight * nll
        return parts

    def count(step):
        seen.steps = step

    task.fit(student, loss, loader=task.train_loader(rows=target), on_step=count, state=[prototypes, seen])
    both = torch.nn.ModuleDict({"teacher": teacher, "prototypes": prototypes})
    save_file(both.state_dict(), task.artifact("stages.safetensors"))
    return student


# --- evaluation -------------------------------------------------------------------------------------------------------


def about_pseudo_labels(task, model, teacher, prototypes, params):
    """How right the final pseudo-labels of the training sentences are, and the teacher's own."""
    gold = task.split("gold")
    mine, taught = (all_words(task, network, gold.sequences, "gold") for network in (model, teacher))
    labels, sure = pseudo_labels(mine.features, taught.logits, prototypes, params)
    truth, table = [row.tags for row in gold.rows], {}
    values = {"pseudo_coverage": float(sure.double().mean())}
    for name, guess in (("pseudo", labels), ("teacher_pseudo", taught.logits.argmax(-1))):
        right = (guess == mine.labels).double()
        spans = span_metrics(truth, by_sentence([TAGS[i] for i in guess.tolist()], mine.row, len(gold)))
        values |= {f"{name}_accuracy": float(right.mean()), f"{name}_f1": spans["f1"]}
        table[name] = {tag: float(right[mine.labels == i].mean()) for i, tag in enumerate(TAGS)}
    if bool(sure.any()):
        values["pseudo_accuracy_sure"] = float((labels == mine.labels)[sure].double().mean())
    return values, table


@hookimpl
def evaluate(task, model, params):
    values, table = task.score(model), {}
    teacher, prototypes = task.teacher(trainable=True), Prototypes(len(TAGS), model.config.hidden_size)
    both = torch.nn.ModuleDict({"teacher": teacher, "prototypes": prototypes})
    both.load_state_dict(load_file(task.artifact("stages.safetensors")))
    values["teacher_f1"] = task.kind.measured(task, teacher, "test")[0]["f1"]
    for when, network in (("before", task.teacher()), ("after", teacher)):
        table[when] = language_distances(task, network)
        values |= {f"prototype_{name}_{when}": value for name, value in table[when].items()}
    if params.self_training != "none":
        asked = prototypes if params.self_training == "prototype" else None
        pseudo, table["accuracy_by_tag"] = about_pseudo_labels(task, model, teacher, asked, params)
        values |= pseudo
    task.artifact("stages.json").write_text(json.dumps(table, indent=1) + "\n")
    return values
