"""A board needs a task of which plain behaviour cloning learns something."""

from __future__ import annotations

import pytest

from kdbench.errors import UsageError
from kdbench.registry import discover
from kdbench.tracks.policy import gate
from kdbench.tracks.policy.spec import Gate
from kdbench.tracks.policy.task import PolicyTask


@pytest.fixture(scope="module")
def registry():
    return discover()


def make(registry, tmp_path, least):
    spec = registry.task("policy/nav-bimodal", "smoke", {"gate": {"success": least}})
    task = PolicyTask(spec, seed=3, method="policy/probe", folder=tmp_path)
    task.phase = "evaluate"
    return task


def test_the_plain_student_is_trained_once_and_decides(registry, tmp_path, monkeypatch):
    task = make(registry, tmp_path, 1.0)
    spent = dict(task.budget.spent)
    task.prepare()
    found = gate.measured(task)
    assert set(found) == {"success", "return"}
    assert task.budget.spent == spent
    assert task.board_problems() == gate.problems(found, Gate(success=1.0))
    assert "plain behaviour cloning" in task.board_problems()[0]

    monkeypatch.setattr(gate, "clone", lambda _: pytest.fail("trained again"))
    assert make(registry, tmp_path, 0.0).board_problems() == []  # what is asked for does not change what was learned


def test_what_the_plain_student_depends_on_makes_another(registry):
    def key(**changes):
        spec = registry.task("policy/nav-bimodal", "smoke", {"gate": {}, **changes})
        ((_, found, _),) = (need for need in spec.teacher_needs() if need[0] == "gap")
        return found

    assert key() == key(evaluation={"episodes": 4})
    for changed in ({"data": {"episodes": 7}}, {"recipe": {"lr": 0.1}}, {"student": {"embedding": 8}}):
        assert key(**changed) != key()


def test_worlds_without_success_have_no_gate(registry):
    with pytest.raises(UsageError, match="a gate asks for success"):
        registry.task("policy/lake", "smoke", {"gate": {}})
