"""Limits stop, meters only count."""

from __future__ import annotations

import math

import pytest

from kdbench.budget import Budget
from kdbench.errors import OverBudget


def test_a_limit_stops_and_what_was_refused_is_not_spent():
    budget = Budget({"steps": 10})
    budget.spend("steps", 7)
    with pytest.raises(OverBudget, match="limit of this task is 10"):
        budget.spend("steps", 4)
    assert budget.remaining("steps") == 3
    budget.spend("steps", 3)
    assert budget.report() == {"steps": 10.0}


def test_a_meter_counts_without_end():
    budget = Budget({"steps": 1})
    budget.spend("teacher_queries", 10**9)
    assert math.isinf(budget.remaining("teacher_queries"))
    assert budget.report()["teacher_queries"] == 1e9


def test_phases_share_the_whole_limit():
    budget = Budget({"steps": 100, "tokens": 5})
    assert budget.primary == "steps"
    assert budget.steps(0.25) == 25
    assert budget.steps(0.001) == 1
    with pytest.raises(OverBudget, match="no limit on steps"):
        Budget({}).steps()
