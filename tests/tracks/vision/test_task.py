"""The task keeps its promises to methods: equal starts, hidden labels, unreachable tests, metered teachers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.cache import Cache
from kdbench.errors import ArtifactError, JobError, OverBudget, TestDataError
from kdbench.tracks.vision import data, teachers
from kdbench.tracks.vision.batches import Batch, roll
from kdbench.tracks.vision.task import VisionTask

from .conftest import CATALOG

Make = Callable[..., VisionTask]
TASKS = [(entry.name.split("/", 1)[1], entry.scales) for entry in CATALOG.entries()]
SMOKE = [name for name, scales in TASKS if "smoke" in scales]


def ce(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch.x), batch.y, ignore_index=-1)


def test_the_catalog_has_no_broken_task() -> None:
    assert not CATALOG.broken
    for name, scales in TASKS:
        for scale in scales:
            spec = CATALOG.resolve(f"vision/{name}", scale)
            assert spec.headline.name == "top1"
            assert (spec.teacher is None) == (spec.ceiling != "teacher")
            assert ("agreement" in {m.name for m in spec.metrics}) == (spec.teacher is not None)


@pytest.mark.parametrize("name", SMOKE)
def test_every_task_runs_at_smoke_scale(name: str, make_task: Make) -> None:
    for package in CATALOG.resolve(f"vision/{name}", "smoke").requires:
        pytest.importorskip(package)
    task = make_task(name)
    task.prepare()
    student = task.student()
    part = "unlabeled" if not len(task.split("labeled")) else "labeled"
    if part == "labeled":
        task.fit(student, ce, loader=task.train_loader("labeled"))
    task.check(student)
    assert set(task.validate(student)) >= {"top1", "nll", "ece"}
    task.phase = "evaluate"
    scores = task.scores(student)
    assert list(scores.metrics) == [metric.name for metric in task.spec.all_metrics()]
    assert all(np.isfinite(value) for value in scores.metrics.values())
    for metric in task.spec.all_metrics():
        low, high = metric.bounds
        assert low is None or scores.metrics[metric.name] >= low
        assert high is None or scores.metrics[metric.name] <= high
    assert scores.examples["top1"].mean() == pytest.approx(scores.metrics["top1"])
    assert len(scores.examples["nll"]) == task._data.sizes["test"]


# --- pairing ----------------------------------------------------------------------------------------------------------


def test_methods_of_a_seed_start_equal_and_see_equal_batches(make_task: Make) -> None:
    a, b, other = make_task("shapetex", method="a"), make_task("shapetex", method="b"), make_task("shapetex", seed=1)
    digest = teachers.weights_digest
    assert digest(a.student()) == digest(a.student()) == digest(b.student()) != digest(other.student())
    assert digest(a.student("rn(4,1)")) == digest(a.student())
    orders = [torch.cat([batch.index for batch in task.train_loader()]) for task in (a, b, other)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    rolled = [next(iter(task.train_loader(augment=True))).x for task in (a, b)]
    assert torch.equal(*rolled)


def test_training_is_deterministic(make_task: Make) -> None:
    made = []
    for _ in range(2):
        task = make_task("hetero-rn-vit")
        student = task.student()
        task.fit(student, ce)
        made.append(teachers.weights_digest(student))
    assert made[0] == made[1]


def test_epochs_cover_the_split_in_new_orders(make_task: Make) -> None:
    loader = make_task("shapetex").train_loader(batch_size=40)
    first, second = ([batch.index for batch in loader] for _ in range(2))
    assert [len(part) for part in first] == [40, 40, 10]
    assert len(loader) == 3
    for epoch in (first, second):
        assert sorted(torch.cat(epoch).tolist()) == list(range(90))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_indices_choose_positions(make_task: Make) -> None:
    task = make_task("shapetex")
    batches = list(task.train_loader(indices=[5, 7, 5], batch_size=3))
    assert sorted(batches[0].index.tolist()) == [5, 5, 7]
    with pytest.raises(JobError, match=r"'val'|splits"):
        task.split("vall")


def test_roll_shifts_each_image_cyclically() -> None:
    x = torch.arange(64 * 2 * 8 * 8, dtype=torch.float32).view(64, 2, 8, 8)
    rolled = roll(x, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(x, rolled, strict=True):
        shifts = [
            (i, j)
            for i in range(-2, 3)
            for j in range(-2, 3)
            if torch.equal(torch.roll(before, (i, j), dims=(1, 2)), after)
        ]
        assert len(shifts) == 1
        seen |= set(shifts)
    assert len(seen) > 15


# --- what training may see --------------------------------------------------------------------------------------------


def test_test_data_are_out_of_reach(make_task: Make) -> None:
    task = make_task("shapetex")
    for name in ("test", "ood_1", "ood_4"):
        with pytest.raises(TestDataError):
            task.split(name)
    for call in (lambda: task.score(task.student()), lambda: task.truth("train"), task.pool_truth):
        with pytest.raises(TestDataError):
            call()
    task.phase = "evaluate"
    assert len(task.split("test")) == 60
    task.phase = "train"
    with pytest.raises(TestDataError):
        task.split("test")


@pytest.mark.parametrize(
    "name", ["digits-fewlabel", "active", "digits-active", "noisy", "webly", "mismatch", "related"]
)
def test_hidden_labels_are_hidden(name: str, make_task: Make) -> None:
    task = make_task(name)
    for split in [name for name in task._data.sizes if name in ("train", "pool", "proxy")]:
        part = task.split(split)
        truth = torch.from_numpy(task._data.arrays(split).truth)
        hidden = part.y != truth
        if not hidden.any():
            continue
        # No column of the metadata is a function that gives the class away.
        for values in part.meta.values():
            known = values[hidden].unique()
            assert len(known) > 1 or truth[hidden].unique().numel() > 1
            if len(known) < hidden.sum() / 2:
                groups = [truth[hidden][values[hidden] == value].unique().numel() for value in known]
                assert max(groups) > 1
        assert not {"shape", "texture", "number"} & set(part.meta)


def test_labeled_and_unlabeled_are_the_parts_of_train(make_task: Make) -> None:
    task = make_task("digits-fewlabel")
    train, labeled, unlabeled = (task.split(name) for name in ("train", "labeled", "unlabeled"))
    assert (labeled.y >= 0).all()
    assert (unlabeled.y == -1).all()
    assert sorted(torch.cat([labeled.index, unlabeled.index]).tolist()) == train.index.tolist()
    assert torch.equal(train.x[labeled.index], labeled.x)
    task.phase = "evaluate"
    assert (task.truth("unlabeled") >= 0).all()
    assert torch.equal(task.truth("labeled"), labeled.y)


# --- teachers ---------------------------------------------------------------------------------------------------------


def test_a_loaded_teacher_is_the_trained_one(make_task: Make, tmp_path: Path) -> None:
    spec, cpu = make_task("digits-gap").spec, torch.device("cpu")
    cache = Cache(tmp_path / "own")
    own = data.teacher_data(spec.data, cache)
    fresh = teachers.train(spec.teacher, own, spec.data.size, spec.teacher_seed, cpu)
    loaded = teachers.load(spec, "default", cache, cpu, 10)
    assert teachers.weights_digest(fresh) == teachers.weights_digest(loaded)
    x = make_task("digits-gap").split("val").x
    assert torch.equal(fresh(x), loaded(x))


def test_teachers_differ_by_every_part_of_their_recipe(make_spec: Callable) -> None:
    base = make_spec("shapetex")
    keys = {base.teacher_key()}
    for change in (
        {"teacher": {"steps": 9}},
        {"teacher": {"arch": "rn(5,1)"}},
        {"teacher_seed": 1},
        {"data": {"teacher": 121}},
        {"data": {"texture": "coarse"}},
        {"data": {"seed": 1}},
        {"teacher": {"mixup": 0.2}},
        {"teacher": {"smoothing": 0.1}},
    ):
        keys.add(make_spec("shapetex", **change).teacher_key())
    assert len(keys) == 9
    same = make_spec("shapetex", data={"train": 30}, student={"arch": "rn(6,1)"}, limits={"steps": 2})
    assert same.teacher_key() == base.teacher_key()
    assert make_spec("selfdistill").teacher_key() is None


def test_shared_teacher_is_frozen_and_counted(make_task: Make) -> None:
    task = make_task("shapetex-large-teacher")
    x = task.split("val").x[:5]
    for which in ("default", "medium", "vit"):
        teacher = task.teacher(which)
        assert teacher is task.teacher(which)
        assert not teacher.training
        assert not any(p.requires_grad for p in teacher.parameters())
        teacher(x)
    assert task.budget.spent["teacher_queries"] == 15
    task.validate(task.teacher())
    task.check(task.teacher("vit"))
    assert task.budget.spent["teacher_queries"] == 15  # evaluating is no query
    copy = task.teacher("medium", trainable=True)
    copy(x)
    assert all(p.requires_grad for p in copy.parameters())
    assert task.budget.spent["teacher_queries"] == 15
    with pytest.raises(JobError, match="medium"):
        task.teacher("meduim")
    with pytest.raises(JobError, match="no teacher"):
        make_task("selfdistill").teacher()


@pytest.mark.parametrize("which", ["default", "medium"])
def test_a_change_of_any_shared_teacher_is_noticed(which: str, make_task: Make) -> None:
    task = make_task("shapetex-large-teacher")
    first = {name: task.teacher(name) for name in ("default", "medium")}
    task.teacher("medium", trainable=True).head().weight.data.zero_()  # a private copy is free to change
    for network in first.values():
        network(task.split("val").x[:5])
    assert task.changed_teachers() == []
    with torch.no_grad():
        first[which].head().bias.add_(1)
    assert task.changed_teachers() == ["fc.bias"]


def test_cached_and_live_outputs_give_the_same_loss(make_task: Make) -> None:
    task = make_task("shapetex")
    student = task.student().eval()
    for batch in task.train_loader():
        live = Batch(batch.x, batch.y, torch.full_like(batch.index, -1))
        losses = [
            F.kl_div(student(b.x).log_softmax(1), task.teacher_logits(b).softmax(1), reduction="batchmean")
            for b in (batch, live)
        ]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
        assert not task.teacher_logits(batch).requires_grad
    assert task.budget.spent["teacher_queries"] == 3 * 90


def test_augmented_batches_are_never_answered_from_the_cache(make_task: Make) -> None:
    task = make_task("shapetex")
    batch = next(iter(task.train_loader(augment=True)))
    assert batch.augmented
    assert torch.equal(task.teacher_logits(batch), task.teacher()(batch.x))


def test_stored_outputs_are_used_by_other_methods_and_seeds(make_task: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(iter(make_task("shapetex").train_loader()))
    first = make_task("shapetex", method="a").teacher_logits(batch)

    def never(*args: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(teachers, "logits_of", never)
    assert torch.equal(make_task("shapetex", method="b", seed=3).teacher_logits(batch), first)


def test_changing_any_ingredient_changes_the_key_of_outputs() -> None:
    base = {"weights": "w", "content": "d", "split": "train", "transform": "none", "dtype": "float32"}
    keys = {tuple(sorted(teachers.outputs_key(**{**base, name: "other"}).items())) for name in base}
    assert len(keys | {tuple(sorted(teachers.outputs_key(**base).items()))}) == 6


def test_weights_digest_sees_parameters_buffers_and_names() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    seen = {teachers.weights_digest(net)}
    with torch.no_grad():
        net[0].weight += 1e-6
        seen.add(teachers.weights_digest(net))
        net[1].running_mean += 1e-6
        seen.add(teachers.weights_digest(net))
    assert len(seen) == 3


def test_val_and_train_outputs_are_told_apart(make_task: Make) -> None:
    task = make_task("shapetex")
    val = task.split("val").batch()
    assert torch.allclose(task.teacher_logits(val), task.teacher()(val.x), atol=1e-5)
    assert not set(val.index.tolist()) & set(task.split("train").index.tolist())


# --- pools ------------------------------------------------------------------------------------------------------------


def test_queries_of_a_pool_are_rationed(make_task: Make) -> None:
    task = make_task("active")  # 30 queries
    with task_frozen_teacher(task) as teacher:
        expected = teacher(task.split("pool").x[:20])
    answer = task.query(range(20))
    assert torch.allclose(answer, expected, atol=1e-5)
    assert task.budget.spent["teacher_queries"] == 20
    task.query([0, 1, 1, 19])  # paid for
    assert task.budget.spent["teacher_queries"] == 20
    task.query([20, 20])
    assert task.budget.spent["teacher_queries"] == 21
    with pytest.raises(OverBudget, match="9 of 30"):
        task.query(range(21, 31))
    assert task.budget.spent["teacher_queries"] == 21
    task.teacher_logits(task.split("train").batch())  # labelled images are free
    task.teacher_logits(task.split("val").batch())
    assert task.budget.spent["teacher_queries"] == 21
    task.teacher_logits(task.split("pool").batch(torch.arange(20)))
    assert task.budget.spent["teacher_queries"] == 21
    with pytest.raises(OverBudget):
        task.teacher_logits(task.split("pool").batch())
    with pytest.raises(OverBudget):
        task.teacher()(task.split("pool").x)
    with pytest.raises(OverBudget, match="copied"):
        task.teacher(trainable=True)
    with pytest.raises(IndexError):
        task.query([90])
    task.phase = "evaluate"
    assert (task.pool_truth() >= 0).all()
    task.score(task.teacher())  # the ceiling is evaluated without queries


class task_frozen_teacher:
    """The teacher outside of the task's accounting."""

    def __init__(self, task: VisionTask) -> None:
        self.teacher = task.load_teacher()

    def __enter__(self) -> nn.Module:
        return self.teacher

    def __exit__(self, *error: object) -> None:
        return None


def test_tasks_without_a_pool_say_so(make_task: Make) -> None:
    with pytest.raises(JobError, match="no pool"):
        make_task("shapetex").query([0])


# --- artifacts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["rn(4,1)", "vit(16,1,2)", "mixer(16,1)"])
def test_saved_students_score_the_same(arch: str, make_task: Make, tmp_path: Path) -> None:
    task = make_task("shapetex", student={"arch": arch})
    student = task.student()
    task.fit(student, ce)
    task.save(student, tmp_path / "model")
    task.phase = "evaluate"
    assert task.score(task.load(tmp_path / "model")) == task.score(student)


def test_other_returns_are_refused(make_task: Make) -> None:
    task = make_task("shapetex")
    for wrong in (None, 3, {"model": task.student()}):
        with pytest.raises(ArtifactError):
            task.check(wrong)
    with pytest.raises(ArtifactError, match="expected logits"):
        task.check(nn.Flatten())
    with pytest.raises(ArtifactError, match="does not take images"):
        task.check(nn.Linear(3, 30))


def test_scoring_leaves_the_model_as_it_was(make_task: Make) -> None:
    task = make_task("shapetex", evaluate=True)
    student = task.student().train()
    before = teachers.weights_digest(student)
    task.score(student)
    assert student.training
    assert teachers.weights_digest(student) == before


def test_a_task_is_what_it_was_before_teachers_could_be_trained_on_mixed_images(make_spec: Callable) -> None:
    plain = make_spec("shapetex")
    assert make_spec("shapetex", teacher={"mixup": 0.0, "smoothing": 0.0}).identity() == plain.identity()
    assert not {"mixup", "smoothing"} & set(plain.identity()["teacher"])
    assert make_spec("shapetex", teacher={"mixup": 0.4}).identity()["teacher"]["mixup"] == 0.4


def test_teachers_of_mixed_images_and_smoothed_targets_are_others(make_task: Make) -> None:
    task = make_task("digits-mixup")
    x = task.split("val").x
    outputs = [task.teacher(which)(x) for which in ("default", "mixup02", "mixup10", "smoothed")]
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


def test_loading_a_teacher_draws_no_random_number(make_task: Make) -> None:
    # A job that goes on from a checkpoint loads it later than it did at first.
    task = make_task("digits-gap")
    state = torch.get_rng_state()
    task.teacher_logits(task.split("train").batch())
    assert torch.equal(torch.get_rng_state(), state)
