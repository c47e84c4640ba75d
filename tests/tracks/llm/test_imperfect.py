"""Imperfect teachers: shared by seeds, charged to each job; prompts that two stages share none of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdbench.registry import Registry, discover
from kdbench.tracks.llm.blocks.distances import Watch
from kdbench.tracks.llm.blocks.imperfect import disjoint_rows, imperfect_teacher
from kdbench.tracks.llm.task import LLMTask

SHAPE = {"layers": 1, "width": 16, "lm_steps": 2, "sft_steps": 3, "lr": 1e-3, "max_new": 4, "temperature": 1.0}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover()


@pytest.fixture
def task(registry, tmp_path: Path):
    """``task(seed)``: the smoke task of instructions."""

    def make(seed: int) -> LLMTask:
        return LLMTask(registry.task("llm/instruct", "smoke"), seed=seed, method="m", folder=tmp_path)

    return make


def test_two_stages_share_no_prompt_and_the_first_is_the_same_for_all_seeds(task):
    (first, then), (again, other) = (disjoint_rows(task(seed), 20, 30) for seed in (0, 1))
    assert (len(first), len(then)) == (20, 30)
    assert not set(first.tolist()) & set(then.tolist())
    assert torch.equal(first, again)
    assert not torch.equal(then, other)
    assert len(disjoint_rows(task(0), 1000, 1000)[0]) == len(task(0).split("train")) // 2


def test_it_is_made_once_and_charged_to_every_job(task):
    tasks = [task(seed) for seed in (0, 1)]
    rows = disjoint_rows(tasks[0], 8, 8)[0]
    made = [imperfect_teacher(each, rows, **SHAPE) for each in tasks]
    (one, responses), (two, again) = made
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(responses.ids, again.ids)
    assert len(responses) == 8
    costs = [each.budget.report() for each in tasks]
    assert costs[0] == costs[1]
    assert costs[0]["aux_steps"] == 5
    assert costs[0]["teacher_queries"] == 8
    assert costs[0]["generated_tokens"] > 0 < costs[0]["flops"]
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_a_model_is_at_no_distance_from_itself_and_watching_is_free(task):
    one = task(0)
    watch = Watch(one, one.teacher(), prompts=4, max_new=4, temperature=1.0)
    watch(one.teacher(), 0, 0.0)
    point = watch.points[0]
    for name in ("proxy_fkl", "golden_fkl", "proxy_rkl", "golden_rkl"):
        assert point[name] == pytest.approx(0.0, abs=1e-5)
    student = one.student()
    watch(student, 1, 0.5)
    assert watch.points[1]["golden_fkl"] == pytest.approx(watch.points[1]["proxy_fkl"], rel=1e-4)
    assert watch.points[1]["golden_fkl"] > 1e-3
    assert one.budget.report() == {}
    assert student.training
