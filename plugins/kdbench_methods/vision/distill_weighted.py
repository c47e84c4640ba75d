"""Distilling from Similar Tasks for Transfer Learning on a Budget (Borup, Phoo and Hariharan, ICCV 2023).

A target task with few labels and many unlabelled images, and frozen source networks that were trained for other label
sets on other images, some of them irrelevant. For each source s, from its outputs on the target images alone:

1. its similarity e_s to the target task, from the labelled images: PARC, the rank correlation between pairwise
   distances of features and of labels (or LEEP, linear CKA, the H-score). What is not positive becomes a small
   positive number; LEEP, a log-likelihood, is taken as exp(LEEP).
2. a probe: logistic regression on its features, fitted on the labelled images alone and calibrated by their
   cross-validation. It gives pseudo-posteriors h_s(x) for all images.

The small student f learns from the labels and from all sources, weighted by their similarity (DistillWeighted),

    L = lambda mean_labelled CE(y, f) + (1 - lambda) sum_s alpha_s mean_all CE(h_s, f),  alpha_s = e_s^p / sum_r e_r^p

where p = 0 weighs all sources equally and p to infinity leaves the nearest one (DistillNearest). Each mean is over its
own half of the batch, which goes through the student as one. No source image is used.

Training also distils each source alone into a student of its own, in few steps (``aux_steps``). Evaluation adds what
these students score: the rank correlation of similarity and score, and the regret of choosing the nearest source over
the best one; the similarities and weights; and how many pseudo-labels of unlabelled images are right. Labels alone,
from a trained start (``supervised: 1``, ``init: small``), are fine-tuning; ``sources: [NAME]`` is one source, such as
the best. The paper has 28 sources and 8 real target tasks; here are six sources whose relevance is known.
"""

import json
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import JobError, UsageError, did_you_mean
from kdbench.losses.logits import cross_entropy
from kdbench.tracks.vision.batches import Pairs
from kdbench.tracks.vision.metrics import linear_cka
from kdbench.training.probes import fit_probe
from kdbench.training.similarity import h_score, leep, one_hot, parc, spearman

PAPER = Paper(
    slug="distill_weighted",
    title="Distilling from Similar Tasks for Transfer Learning on a Budget",
    year=2023,
    authors=["Kenneth Borup", "Cheng Perng Phoo", "Bharath Hariharan"],
    venue="ICCV 2023",
    arxiv="2304.12314",
    url="https://github.com/Kennethborup/DistillWeighted",
    track="vision",
    source="paper",
    tasks=["related"],
    requires=["features"],
    tags=["multi-teacher", "transfer", "semi-supervised"],
    claims=[
        Compare(
            metric="top1",
            subject="distill_weighted",
            reference={"method": "distill_weighted", "params": {"power": 0.0}},
            tasks=["related"],
            note="weights by task similarity beat equal weights where irrelevant sources are among them",
        ),
        Compare(
            metric="top1",
            subject={"method": "distill_weighted", "params": {"choice": "nearest"}},
            reference={"method": "distill_weighted", "params": {"choice": "random"}},
            tasks=["related"],
            note="the source that is nearest by PARC is better to distil from than one drawn at random",
        ),
    ],
    departures=[
        "power 9, the floor of similarities, the ridge and the temperature of the probes are our reading",
        "students that learn from one source alone have few steps, so that their ranking costs less than the method",
    ],
)

START = "small"
"""Teacher of the track's tasks that students start from and none learns from."""
FLOOR = 1e-3
"""Similarity of a source that is no nearer than chance."""


class DistillWeightedParams(Params):
    """Similarity, weights of the sources, probes and the balance of labels and sources."""

    similarity: Literal["parc", "leep", "cka", "h-score"] = Field("parc", description="how near a source is")
    choice: Literal["weighted", "nearest", "random"] = Field(
        "weighted", description="all sources by their similarity, the nearest one, or one at random"
    )
    power: float = Field(9.0, ge=0, le=1000, description="p: 0 weighs all sources equally")
    supervised: float = Field(0.5, ge=0, le=1, description="lambda, the weight of the labels; 1: labels alone")
    sources: list[str] = Field([], description="teachers to distil from; empty: all but small")
    init: str = Field("", description="teacher whose weights the student starts from, its classifier excepted")
    ridge: float = Field(1.0, gt=0, description="weight of the squared norm of the probes' weights")
    calibrate: bool = Field(True, description="give each probe the best temperature of a cross-validation")
    singles: float = Field(
        0.3, ge=0, le=1, description="steps of the students of one source alone, as a share of the student's; 0: none"
    )


def source_names(task, params):
    """Sources to distil from, in the task's order. Raises ``JobError`` or ``UsageError`` where there are none."""
    known = [name for name, teacher in task.spec.all_teachers().items() if teacher.target != "label"]
    for name in params.sources:
        if name not in known:
            raise UsageError(f"no source {name!r}; {did_you_mean(name, known, label='sources')}")
    chosen = list(params.sources) or [name for name in known if name != START]
    if not chosen:
        raise JobError(f"{task.spec.name} has no teacher of another label function to distil from")
    return chosen


def outputs_of(task, source, split, size=500):
    """Features (N, D) and probabilities (N, Z) of a source on a split, float64 arrays."""
    taps = [task.teacher_taps(batch, source) for batch in split.batches(size)]
    features, logits = torch.cat([each.penult for each in taps]), torch.cat([each.logits for each in taps])
    return features.double().cpu().numpy(), F.softmax(logits.double(), -1).cpu().numpy()


def similarity_of(kind, features, probs, labels):
    """How near a source is to the labels (N,): at least ``FLOOR``."""
    if kind == "parc":
        value = parc(features, labels)
    elif kind == "leep":
        value = float(np.exp(leep(probs, labels)))
    elif kind == "cka":
        value = linear_cka(torch.from_numpy(features), torch.from_numpy(one_hot(labels)))
    else:
        value = h_score(features, labels)
    return max(value, FLOOR)


def source_weights(similarities, power):
    """e^p / sum e^p of similarities (S,) > 0: equal ones for p = 0, the largest alone for p = infinity."""
    logs = np.log(similarities)
    ratios = np.exp(power * (logs - logs.max())) if np.isfinite(power) else (logs == logs.max()).astype(float)
    return ratios / ratios.sum()


def chosen_weights(task, params, similarities):
    """(S,) weights of the sources, which sum to 1."""
    similarities = np.asarray(similarities)
    if params.choice == "weighted":
        return source_weights(similarities, params.power)
    count = len(similarities)
    row = similarities.argmax() if params.choice == "nearest" else task.rng("source").integers(count)
    return np.eye(count)[row]


def start(task, params):
    """The student, from its initialisation or from the weights of a trained network of its architecture."""
    student = task.student()
    if not params.init:
        return student
    trained = task.teacher(params.init)
    if trained.arch != student.arch:
        raise UsageError(f"init: {params.init!r} is {trained.arch}, but the student is {student.arch}")
    classifier = {id(tensor) for tensor in student.head().state_dict(keep_vars=True).values()}
    mine = student.state_dict(keep_vars=True)
    weights = {name: tensor for name, tensor in trained.state_dict().items() if id(mine[name]) not in classifier}
    student.load_state_dict(weights, strict=False)
    return student


def distil(task, student, targets, supervised, **fit):
    """Train on labels and on soft targets (N, C) of all training images, in their order."""
    labelled = task.train_loader("labeled")
    everything = task.train_loader("train", purpose="everything")

    def loss(model, batch):
        labelled, others = batch.parts(model(batch.x))
        soft = F.cross_entropy(others.float(), targets[batch.other.index])
        return {"ce": supervised * cross_entropy(labelled, batch.labeled.y), "sources": (1 - supervised) * soft}

    task.fit(student, loss, loader=Pairs(labelled, everything), **fit)
    return student


@hookimpl
def train(task, params):
    train, names = task.split("train"), source_names(task, params)
    known = (train.y >= 0).cpu().numpy()
    labels = train.y.cpu().numpy()[known]
    posteriors, similarities = [], []
    for name in names:
        features, probs = outputs_of(task, name, train)
        similarities.append(similarity_of(params.similarity, features[known], probs[known], labels))
        probe = fit_probe(
            features[known],
            labels,
            task.num_classes,
            strength=1 / params.ridge,
            calibrate=params.calibrate,
            seed=task.stream("folds"),
        )
        posteriors.append(probe.posteriors(features))
    weights = chosen_weights(task, params, similarities)
    soft = torch.from_numpy(np.stack(posteriors)).float().to(task.device)
    mixed = torch.einsum("s,snc->nc", torch.from_numpy(weights).to(soft), soft)
    for name, own in zip(names, soft, strict=True):
        if params.singles:
            single, steps = start(task, params), task.budget.steps(params.singles)
            distil(task, single, own, params.supervised, steps=steps, spend="aux_steps", tag=f"single-{name}")
            state = {key: tensor.cpu().contiguous() for key, tensor in single.state_dict().items()}
            save_file(state, task.artifact(f"single-{name}.safetensors"))
    student = distil(task, start(task, params), mixed, params.supervised)
    save_file({"targets": mixed[train.y < 0].cpu().contiguous()}, task.artifact("targets.safetensors"))
    table = {"sources": names, "similarity": similarities, "weight": weights.tolist()}
    task.artifact("sources.json").write_text(json.dumps(table))
    return student


@hookimpl
def evaluate(task, model, params):
    """Similarity and weight of each source, and what the students of one source say about them."""
    path = task.artifact("sources.json")
    table = json.loads(path.read_text())
    weights = np.array(table["weight"])
    values = {"sources_in_use": float(1 / np.square(weights).sum())}  # of equal weights their number
    for name, similarity, weight in zip(table["sources"], table["similarity"], table["weight"], strict=True):
        values |= {f"similarity_{name}": similarity, f"weight_{name}": weight}
    truth = task.truth("unlabeled")
    if len(truth):
        targets = load_file(task.artifact("targets.safetensors"))["targets"].to(truth.device)
        values["pseudo_top1"] = float((targets.argmax(1) == truth).float().mean())
    if params.singles:
        single, scores = task.student(), []
        for name in table["sources"]:
            single.load_state_dict(load_file(task.artifact(f"single-{name}.safetensors")))
            scores.append(task.score_test(single).metrics["top1"])
        table["single_top1"] = scores
        path.write_text(json.dumps(table))
        nearest = int(np.argmax(table["similarity"]))
        values |= {
            "similarity_rank": spearman(np.array(table["similarity"]), np.array(scores)),
            "nearest_regret": max(scores) - scores[nearest],
            "single_top1_best": max(scores),
            "single_top1_mean": float(np.mean(scores)),
        }
    return task.score(model) | values
