"""The task that hooks receive: randomness, teachers, guards, curve."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.errors import ArtifactError, TestDataError
from kdbench.spec import Metric, TaskSpec
from kdbench.task import Scores, Task, count_parameters, seed_of


class Spec(TaskSpec):
    def teacher_key(self):
        return "teacher"


class Toy(Task):
    scored = 0

    def build_student(self):
        return nn.Linear(2, 2)

    def build_teacher(self):
        return nn.Linear(2, 2)

    def load_teacher(self):
        with self.seeded("eval"):
            return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def train_loader(self):
        generator = self.generator("data")
        return [torch.randn(4, 2, generator=generator) for _ in range(3)]

    def validate(self, model):
        return {"accuracy": 0.5}

    def score_test(self, model):
        self.scored += 1
        return Scores({"accuracy": 0.5})

    def check(self, model):
        self.require(model, nn.Module)

    def save(self, model, folder):
        raise AssertionError("not used here")

    def load(self, folder):
        raise AssertionError("not used here")


def toy(tmp_path, seed=0, method="toy/a", name="toy/one", **kwargs):
    spec = Spec(name=name, title="", family="f", scale="smoke", headline=Metric(name="accuracy"), limits={"steps": 5})
    return Toy(spec, seed=seed, method=method, folder=tmp_path, **kwargs)


def test_methods_share_the_streams_that_pair_them_and_nothing_else(tmp_path):
    a, b = toy(tmp_path, method="toy/a"), toy(tmp_path, method="toy/b")
    assert torch.equal(a.student().weight, b.student().weight)
    assert torch.equal(a.train_loader()[0], b.train_loader()[0])
    assert a.stream("noise") != b.stream("noise")
    other_seed, other_task = toy(tmp_path, seed=1), toy(tmp_path, name="toy/two")
    for other in (other_seed, other_task):
        assert not torch.equal(a.student().weight, other.student().weight)
    assert a.rng("x").integers(1 << 30) == toy(tmp_path).rng("x").integers(1 << 30)


def test_parts_of_a_seed_do_not_run_together():
    assert seed_of("a", "bc") != seed_of("ab", "c")
    assert 0 <= seed_of("a", 1) < 2**63


def test_seeded_leaves_the_global_generators_as_they_were(tmp_path):
    task = toy(tmp_path)
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    with task.seeded("init"):
        torch.rand(7), np.random.rand(7), random.random()
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_the_teacher_is_frozen_shared_and_metered(tmp_path):
    task = toy(tmp_path)
    teacher = task.teacher()
    assert teacher is task.teacher()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    teacher(torch.zeros(6, 2))
    teacher(torch.zeros(3, 2))
    assert task.budget.report()["teacher_queries"] == 9


def test_a_trainable_teacher_is_a_private_copy(tmp_path):
    task = toy(tmp_path)
    shared = task.teacher()
    private = task.teacher(trainable=True)
    assert private.training
    assert all(p.requires_grad for p in private.parameters())
    with torch.no_grad():
        private[0].weight.zero_()
    assert shared[0].weight.abs().sum() > 0
    private(torch.zeros(6, 2))
    assert "teacher_queries" not in task.budget.report()
    assert toy(tmp_path).teacher(trainable=True)[0].weight.requires_grad


def test_test_data_is_out_of_reach_in_train(tmp_path):
    task = toy(tmp_path)
    with pytest.raises(TestDataError, match="task.validate"):
        task.score(task.student())
    assert task.scored == 0
    task.phase = "evaluate"
    model = task.student()
    assert task.score(model) == {"accuracy": 0.5}
    task.score(model)["accuracy"] = 1.0
    assert task.score(model) == {"accuracy": 0.5}
    assert task.scored == 1
    task.score(task.student())
    assert task.scored == 2


def test_results_of_the_wrong_kind_are_refused(tmp_path):
    task = toy(tmp_path)
    task.check(task.student())
    with pytest.raises(ArtifactError, match="returned None, .* `return student`"):
        task.check(None)
    with pytest.raises(ArtifactError, match="a dict, but the track 'toy' evaluates Module"):
        task.check({})


def test_fit_uses_the_recipe_of_the_task_with_the_changes_of_the_method(tmp_path):
    task = toy(tmp_path)
    model = task.student()
    task.fit(model, lambda model, batch: model(batch).square().mean(), steps=2, lr=0.5, optimizer="sgd")
    with pytest.raises(ValueError, match="lr"):
        task.fit(model, lambda model, batch: model(batch).square().mean(), steps=1, lr=-1)
    assert task.budget.remaining("steps") == 3


def test_the_curve_is_written_with_undefined_values_as_null(tmp_path):
    reports = []
    task = toy(tmp_path, report=lambda *args: reports.append(args))
    task.log(1, loss=torch.tensor(2.0), kl=float("nan"))
    task.log(2, loss=1.0)
    task.flush()
    rows = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 2.0, "kl": None}, {"step": 2, "loss": 1.0}]
    assert len(reports) == 1, "progress is reported at most twice a second"


def test_progress_says_how_many_steps_there_are(tmp_path):
    reports = []
    task = toy(tmp_path, report=lambda *args: reports.append(args))
    task.fit(task.student(), lambda model, batch: model(batch).square().mean(), steps=3)
    assert reports[0][:2] == (1, 3), "from the first step on"


def test_artifacts_live_in_the_folder_of_the_job(tmp_path):
    path = toy(tmp_path).artifact("grids/first.png")
    assert path == tmp_path / "artifacts" / "grids" / "first.png"
    assert path.parent.is_dir()


def test_parameters_are_counted_once():
    shared = nn.Linear(3, 3, bias=False)
    assert count_parameters(nn.Sequential(shared, shared)) == 9


def test_the_default_cache_has_the_packs_of_the_track_and_of_those_it_stands_on():
    from kdbench.tracks.decoding import TRACK as DECODING
    from kdbench.tracks.decoding.task import DecodingTask
    from kdbench.tracks.llm import TRACK as LLM
    from kdbench.tracks.llm.task import LLMTask

    assert Task._packs() == ()
    assert LLMTask._packs() == (LLM.packs,)
    assert DecodingTask._packs() == (DECODING.packs, LLM.packs)
