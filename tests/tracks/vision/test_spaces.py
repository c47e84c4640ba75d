"""Search spaces: caps, mutations, the table of accuracies and who may see its test column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdbench.cache import Cache
from kdbench.errors import JobError, TestDataError, UsageError
from kdbench.task import count_parameters
from kdbench.tracks.vision import PACKS
from kdbench.tracks.vision.models import build
from kdbench.tracks.vision.spaces import Space
from kdbench.tracks.vision.spec import SearchSpec

SMALL = SearchSpec(widths=(2, 3), depths=(1, 2), max_parameters=None, table=5)


def test_a_space_has_all_combinations_under_its_caps() -> None:
    space = Space(SMALL, 10, 16)
    assert len(space.archs) == 2 * 2**3
    assert space.parameters("rn(3,1,2,1)") == count_parameters(build("rn(3,1,2,1)", 10))
    cap = sorted(space.parameters(arch) for arch in space.archs)[6]
    capped = Space(SMALL.model_copy(update={"max_parameters": cap}), 10, 16)
    assert set(capped.archs) == {arch for arch in space.archs if space.parameters(arch) <= cap}
    macs = sorted(space.macs(arch) for arch in space.archs)
    cheap = Space(SMALL.model_copy(update={"max_macs": round(macs[5])}), 10, 16)
    assert 0 < len(cheap.archs) < len(space.archs)


def test_equal_depths_are_the_plain_network() -> None:
    assert build("rn(3,2,2,2)", 10).state_dict().keys() == build("rn(3,2)", 10).state_dict().keys()


def test_a_mutation_changes_one_choice_and_respects_the_cap() -> None:
    space, rng = Space(SMALL.model_copy(update={"max_parameters": 3500}), 10, 16), np.random.default_rng(0)
    for _ in range(30):
        arch = space.random(rng)
        child = space.mutate(arch, rng)
        assert sum(a != b for a, b in zip(space.genes[arch], space.genes[child], strict=True)) == 1
        assert space.parameters(child) <= 3500


def test_a_space_without_networks_is_refused() -> None:
    with pytest.raises(UsageError, match="raise search.max_parameters"):
        Space(SMALL.model_copy(update={"max_parameters": 10}), 10, 16)


def test_the_table_is_for_every_job_the_same(make_task: Callable) -> None:
    tasks = [make_task("search", seed=seed, evaluate=True) for seed in (0, 1)]
    first, second = (task.trained("test") for task in tasks)
    assert first == second
    assert list(first) == tasks[0].space.listed()
    assert len(set(first)) == 4
    assert all(0 <= value <= 1 for pair in first.values() for value in pair)


def test_training_sees_no_test_accuracy(make_task: Callable) -> None:
    task = make_task("search")
    assert len(task.trained("val")) == 4
    with pytest.raises(TestDataError):
        task.trained("test")


def test_other_tasks_have_no_space_and_their_old_identity(make_task: Callable, make_spec: Callable) -> None:
    with pytest.raises(JobError, match="no search space"):
        _ = make_task("digits-gap").space
    assert "search" not in make_spec("digits-gap").identity()
    assert make_spec("search").identity()["search"]["table"] == 4


def test_a_search_space_needs_a_teacher(make_spec: Callable) -> None:
    with pytest.raises(UsageError, match="search needs a teacher"):
        make_spec("search", teacher=None)


@pytest.mark.parametrize("name", ["search", "digits-search"])
@pytest.mark.parametrize("scale", ["quick", "cpu"])
def test_tables_ship_with_the_track(name: str, scale: str, make_spec: Callable, tmp_path: Path) -> None:
    for kind, key, title in make_spec(name, scale).teacher_needs():
        assert Cache(tmp_path, packs=[PACKS]).find(kind, key) is not None, title
