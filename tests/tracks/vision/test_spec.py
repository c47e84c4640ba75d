"""Specifications are light, complete and explain themselves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from kdbench.errors import UsageError


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys, kdbench.tracks.vision.spec\n"
        "heavy = {'torch', 'numpy', 'transformers', 'sklearn', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_metrics_are_those_that_the_task_can_have(make_spec: Callable) -> None:
    def extra(name: str) -> set[str]:
        return {metric.name for metric in make_spec(name).metrics} - {"macro_top1", "nll", "ece", "brier"}

    teacher = {"agreement", "kl_teacher"}
    assert extra("digits-gap") == teacher
    assert extra("shapetex") == teacher | {"ood_top1"}
    assert extra("selfdistill") == {"ood_top1"}
    assert extra("digits-selfdistill") == set()
    assert extra("longtail") == teacher | {"ood_top1", "head_top1", "mid_top1", "tail_top1"}
    assert extra("shapetex-fewclass") == teacher | {"ood_top1", "omitted_top1"}
    assert extra("multidomain") == teacher | {"worst_domain_top1"}
    bounds = {metric.name: metric.bounds for metric in make_spec("shapetex").all_metrics()}
    assert bounds["top1"] == (0, 1)
    assert bounds["brier"] == (0, 2)


def test_teacher_needs_name_the_cache_entries(make_spec: Callable, make_task: Callable) -> None:
    task = make_task("shapetex-large-teacher")
    task.prepare()
    needs = task.spec.teacher_needs()
    assert len(needs) == 3
    assert all(task.cache.find(kind, key) is not None for kind, key, _ in needs)
    assert make_spec("selfdistill").teacher_needs() == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"student": {"arch": "resnet50"}}, "no architecture"),
        ({"teacher": {"steps": 0}}, "steps"),
        ({"teachers": {"default": {"arch": "rn(4,1)"}}}, "taken by teacher"),
        ({"teachers": {"x": {"arch": "rn(4,1)", "target": "hue"}}}, "related data only"),
        ({"data": {"sorce": "digits16"}}, "sorce"),
        ({"augment": "flip"}, "augment"),
    ],
)
def test_wrong_overrides_are_explained(overrides: dict, message: str, make_spec: Callable) -> None:
    with pytest.raises(UsageError, match=message):
        make_spec("shapetex", **overrides)


def test_paper_scale_of_hub_data_resolves_without_a_connection(make_spec: Callable) -> None:
    spec = make_spec("cifar100", "paper")
    assert spec.data.path == "uoft-cs/cifar100"
    assert spec.problems() == []
