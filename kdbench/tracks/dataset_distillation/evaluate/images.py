"""Scores of a distilled set of images: fresh networks learn from it, and from what it is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdbench.errors import JobError
from kdbench.task import Scores, seed_of
from kdbench.tracks.dataset_distillation.blocks.choose import random_rows
from kdbench.tracks.dataset_distillation.blocks.features import features
from kdbench.tracks.dataset_distillation.blocks.labelling import Labelling
from kdbench.tracks.dataset_distillation.blocks.store import Store
from kdbench.tracks.dataset_distillation.blocks.trainer import correct, predict, train_network
from kdbench.tracks.dataset_distillation.data.specs import ImagesData
from kdbench.tracks.dataset_distillation.distilled.base import Distilled
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet
from kdbench.tracks.dataset_distillation.distilled.whole import Whole
from kdbench.tracks.dataset_distillation.evaluate.ranking import augmentation_robust_score, label_robust_score

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask

MOST = 500
"""Images whose distances are measured, at most."""
HARD = Labelling()


def content(task: DDTask, distilled: Distilled) -> tuple[Tensor, Tensor, Labelling, int]:
    """Images, classes, labelling, and the optimizer steps that a network learns for."""
    evaluation = task.spec.evaluation
    if isinstance(distilled, Whole):
        train = task.split("train")
        return train.x, train.y, HARD, evaluation.whole_updates
    if isinstance(distilled, ImageSet):
        return distilled.images(), distilled.classes(), distilled.labelling, evaluation.updates
    raise JobError(f"{task.spec.name} has no score for a {type(distilled).__name__}")


def learn(
    task: DDTask,
    images: Tensor,
    classes: Tensor,
    labelling: Labelling,
    updates: int,
    *,
    augmented: bool,
    arch: str,
    seed: int,
) -> torch.nn.Module:
    """A fresh network of an architecture that learned from images; all randomness from ``seed``."""
    store = task.store(images, classes, labelling, augmented=augmented, seed=seed_of("views", task.spec.name))
    return learn_from(task, store, updates, arch, seed)


def learn_from(task: DDTask, store: Store, updates: int, arch: str, seed: int) -> torch.nn.Module:
    """As :func:`learn`, with labels that several networks share."""
    evaluation = task.spec.evaluation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights", arch, seed))
        network = task.kind.build(arch)
    return train_network(
        network.to(task.device),
        store,
        updates=updates,
        lr=evaluation.lr,
        weight_decay=evaluation.weight_decay,
        seed=seed_of("order", seed) % 2**62,
    )


def _cached(task: DDTask, kind: str, key: dict[str, object], make: Callable[[], dict[str, float]]) -> dict[str, float]:
    def write(folder: Path) -> None:
        (folder / "scores.json").write_text(json.dumps(make(), indent=1, sort_keys=True) + "\n")

    values: dict[str, float] = json.loads((task.cache.get(kind, key, write) / "scores.json").read_text())
    return values


def _random(task: DDTask, run: int) -> tuple[Tensor, Tensor]:
    """The random subset that ``run`` of every comparison takes: images and classes."""
    train = task.split("train")
    generator = torch.Generator().manual_seed(seed_of(task.spec.name, "random subset", run))
    chosen = train.take(random_rows(train.y, task.ipc, generator))
    return chosen.x, chosen.y


def control(task: DDTask, labelling: Labelling, *, augmented: bool) -> float:
    """Test accuracy of random real subsets with a labelling, kept in the cache.

    The mean over the runs; of one run where the images are not augmented as the headline's are.
    """
    spec, test = task.spec, task.split("test")
    runs = spec.evaluation.runs if augmented == spec.evaluation.augment else 1
    members = [spec.committee_keys()[member] for member in labelling.members]
    key = spec.scores_key("control", labelling=asdict(labelling), augmented=augmented, members=members)

    def make() -> dict[str, float]:
        found = []
        for run in range(runs):
            images, classes = _random(task, run)
            network = learn(
                task,
                images,
                classes,
                labelling,
                spec.evaluation.updates,
                augmented=augmented,
                arch=spec.student,
                seed=run,
            )
            found.append(float(correct(network, test.x, test.y).mean()))
        return {"accuracy": sum(found) / len(found)}

    return _cached(task, "control", key, make)["accuracy"]


def whole(task: DDTask) -> float:
    """Test accuracy of training on the whole set, mean over the runs; one cache entry for tasks of any budget."""
    spec = task.spec
    assert isinstance(spec.data, ImagesData)
    shared = {"task": "", "data": spec.data.recipe(), "flip": spec.data.flip}

    def make() -> dict[str, float]:
        train, test, steps = task.split("train"), task.split("test"), spec.evaluation.whole_updates
        found = []
        for run in range(spec.evaluation.runs):
            network = learn(
                task, train.x, train.y, HARD, steps, augmented=spec.evaluation.augment, arch=spec.student, seed=run
            )
            found.append(float(correct(network, test.x, test.y).mean()))
        return {"accuracy": sum(found) / len(found)}

    return _cached(task, "whole", spec.scores_key("whole", **shared), make)["accuracy"]


def references(task: DDTask) -> dict[str, float]:
    """``whole`` and ``random`` test accuracy with hard labels, as the task augments; made once per task."""

    def make() -> dict[str, float]:
        return {"whole": whole(task), "random": control(task, HARD, augmented=task.spec.evaluation.augment)}

    return _cached(task, "reference", task.spec.scores_key("reference"), make)


def diversity(task: DDTask, images: Tensor) -> float:
    """Mean distance of pairs of images in the teacher's features, each brought to length 1; in [0, 2]."""
    found = torch.nn.functional.normalize(features(task.teacher(), images[:MOST]), dim=1)
    return float(torch.pdist(found.double()).mean()) if len(found) > 1 else 0.0


def validate(task: DDTask, distilled: Distilled) -> dict[str, float]:
    """``accuracy`` on the validation images of one network of the student's architecture."""
    images, classes, labelling, updates = content(task, distilled)
    augmented, seed = task.spec.evaluation.augment, seed_of(task.stream("eval"), "val")
    val = task.split("val")
    network = learn(task, images, classes, labelling, updates, augmented=augmented, arch=task.spec.student, seed=seed)
    return {"accuracy": float(correct(network, val.x, val.y).mean())}


def measure(task: DDTask, distilled: Distilled) -> Scores:
    """All metrics of the track for images; ``accuracy`` by test image is the mean over the runs."""
    spec, evaluation, test = task.spec, task.spec.evaluation, task.split("test")
    images, classes, labelling, updates = content(task, distilled)

    def runs(how: Labelling, archs: list[str], *, augmented: bool = evaluation.augment) -> Tensor:
        """(runs, N_test) hits of networks that learn from the set, one for each architecture."""
        store = task.store(images, classes, how, augmented=augmented, seed=seed_of("views", spec.name, task.seed))
        hits = []
        for run, arch in enumerate(archs):
            network = learn_from(task, store, updates, arch, seed_of(task.stream("eval"), run))
            hits.append(correct(network, test.x, test.y))
        return torch.stack(hits)

    own = [spec.student] * evaluation.runs
    hits = runs(labelling, own + list(evaluation.unseen))
    each = hits[: evaluation.runs].mean(0)
    accuracy = float(each.mean())
    hard = accuracy if labelling == HARD else float(runs(HARD, own).mean())
    plain = float(runs(labelling, [spec.student], augmented=not evaluation.augment).mean())
    known, floats = references(task), distilled.floats(task)
    against = control(task, labelling, augmented=evaluation.augment)
    against_plain = control(task, labelling, augmented=not evaluation.augment)
    pairs = [(accuracy, against), (plain, against_plain)]
    (with_views, with_views_control), (without, without_control) = pairs if evaluation.augment else pairs[::-1]
    metrics = {
        "accuracy": accuracy,
        "cross": float(hits[evaluation.runs :].mean()) if evaluation.unseen else accuracy,
        "hard": hard,
        "control": against,
        "data_value": accuracy - against,
        "label_value": against - known["random"],
        "lrs": label_robust_score(known["whole"], hard, accuracy, against, evaluation.w),
        "ars": augmentation_robust_score(with_views, with_views_control, without, without_control, evaluation.g),
        "diversity": diversity(task, images),
        "data_floats": float(floats["data"]),
        "label_floats": float(floats["labels"]),
    }
    return Scores(metrics, {"accuracy": each.cpu().numpy()})


def train_accuracy(task: DDTask, distilled: Distilled, seed: int = 0) -> tuple[float, float]:
    """Accuracy of one network on the images that it learned from, by their classes, and on the test images."""
    images, classes, labelling, updates = content(task, distilled)
    network = learn(
        task,
        images,
        classes,
        labelling,
        updates,
        augmented=task.spec.evaluation.augment,
        arch=task.spec.student,
        seed=seed_of(task.stream("eval"), "gap", seed),
    )
    test = task.split("test")
    own = float((predict(network, images).argmax(1) == classes).double().mean())
    return own, float(correct(network, test.x, test.y).mean())
