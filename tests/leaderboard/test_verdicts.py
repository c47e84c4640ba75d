"""What paired values say about a claim: the rules, their levels, and what failures do to them."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kdbench.leaderboard.power import seeds_to_separate
from kdbench.leaderboard.verdicts import Side, judge, ratio_interval

SPREAD = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
"""Deviations from a mean; their 95 % interval is ± 0.0196."""


def side(name: str, values, **failed: int) -> Side:
    """Values by seed; ``failed`` gives the seeds after those that a status ended, such as ``diverged=2``."""
    values = dict(enumerate(map(float, values)))
    statuses = [status for status, count in failed.items() for _ in range(count)]
    return Side(name, values, dict(enumerate(statuses, len(values))))


def verdict(kind: str, margin: float, difference: float, direction: str = "max") -> str:
    """Of a subject that is better by ``difference``, give or take 0.0196."""
    sign = 1 if direction == "max" else -1
    a, b = side("a", 5 + sign * (difference + SPREAD)), side("b", np.full(5, 5.0))
    found = judge(kind, margin, a, b, direction)
    assert found.n == 5
    assert found.effect.mean == pytest.approx(difference)
    assert (found.verdict == "undecided") == bool(found.notes)
    return found.verdict


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize(
    ("kind", "margin", "difference", "expected"),
    [
        ("superior", 0.0, 0.03, "reproduced"),
        ("superior", 0.0, -0.03, "not reproduced"),
        ("superior", 0.0, 0.01, "undecided"),
        ("superior", 0.02, 0.03, "undecided"),
        ("superior", 0.06, 0.03, "not reproduced"),
        ("noninferior", 0.0, 0.03, "reproduced"),
        ("noninferior", 0.02, 0.03, "reproduced"),
        ("noninferior", 0.05, -0.03, "reproduced"),
        ("noninferior", 0.04, -0.03, "undecided"),
        ("noninferior", 0.02, -0.03, "undecided"),
        ("noninferior", 0.01, -0.04, "not reproduced"),
    ],
)
def test_the_interval_decides(kind, margin, difference, direction, expected):
    assert verdict(kind, margin, difference, direction) == expected


@pytest.mark.parametrize(
    ("direction", "margin", "expected"),
    [
        ("max", 0.4, "reproduced"), ("max", 0.5, "undecided"), ("max", 0.6, "not reproduced"),
        ("min", 0.6, "reproduced"), ("min", 0.5, "undecided"), ("min", 0.4, "not reproduced"),
    ],
)  # fmt: skip
def test_a_ratio_is_at_least_the_margin_or_at_most_where_less_is_better(direction, margin, expected):
    found = judge("ratio", margin, side("a", 5 + 10 * SPREAD), side("b", 10 - 10 * SPREAD), direction)
    assert found.effect.mean == pytest.approx(0.5)
    assert found.verdict == expected


def test_values_that_agree_are_certain_from_three_seeds_on_and_no_test_before():
    same = [0.9, 0.8, 0.7]
    assert judge("noninferior", 0, side("a", same), side("b", same), "max").verdict == "reproduced"
    assert judge("superior", 0, side("a", same), side("b", same), "max").verdict == "not reproduced"
    lower = [value - 0.02 for value in same]  # differ by rounding from 0.02 below
    assert judge("noninferior", 0.02, side("a", lower), side("b", same), "max").verdict == "reproduced"
    assert judge("ratio", 2, side("a", [3.0] * 3), side("b", [1.5] * 3), "max").verdict == "reproduced"
    for kind in ("superior", "noninferior", "ratio"):
        found = judge(kind, 0.5, side("a", [0.9, 0.8]), side("b", [0.9, 0.8]), "max")
        assert found.verdict == "undecided"
        assert "agree to the last digit" in found.notes[0]


def test_the_spread_is_at_least_what_one_example_changes():
    a, b = side("a", [0.91] * 3), side("b", [0.90] * 3)
    assert judge("superior", 0, a, b, "max").verdict == "reproduced"
    assert judge("superior", 0, a, b, "max", resolution=0.01).verdict == "undecided"
    assert judge("ratio", 1.001, a, b, "max").verdict == "reproduced"
    assert judge("ratio", 1.001, a, b, "max", resolution=0.01).verdict == "undecided"


def test_an_identity_is_an_error_with_a_tolerance():
    exact = Side("0", constant=0.0)
    assert judge("noninferior", 1e-5, side("a", [1e-7, 2e-7, 0.0]), exact, "min").verdict == "reproduced"
    assert judge("noninferior", 1e-5, side("a", [1e-3, 2e-3, 1.5e-3]), exact, "min").verdict == "not reproduced"


def test_only_seeds_of_both_count_and_two_are_needed():
    a = Side("a", {0: 0.9, 1: 0.91, 2: 0.93, 7: 0.1})
    b = Side("b", {0: 0.8, 1: 0.81, 2: 0.82, 9: 0.99})
    found = judge("superior", 0, a, b, "max")
    assert (found.verdict, found.n) == ("reproduced", 3)
    alone = judge("superior", 0, a, Side("b", {7: 0.0}), "max")
    assert (alone.verdict, alone.n) == ("undecided", 1)
    assert alone.effect.low is None
    assert "2 are needed" in alone.notes[0]
    nobody = judge("superior", 0, Side("a"), Side("b"), "max")
    assert (nobody.verdict, nobody.n, nobody.effect) == ("undecided", 0, None)
    assert nobody.notes == ("neither a nor b has run here",)
    assert judge("superior", 0, a, Side("b"), "max").notes == ("b has not run here",)


GOOD, EVEN, BAD = 0.9 + SPREAD / 4, 0.8 + SPREAD / 4, 0.7 + SPREAD / 4


@pytest.mark.parametrize(
    ("subject", "reference", "expected", "words"),
    [
        pytest.param(side("a", GOOD[:4], oom=1), side("b", EVEN), "undecided", "1 oom", id="good but for one"),
        pytest.param(side("a", GOOD[:4], diverged=1), side("b", EVEN), "undecided", "1 diverged", id="one of five"),
        pytest.param(side("a", GOOD), side("b", EVEN[:4], failed=1), "undecided", "selection", id="the reference"),
        pytest.param(side("a", BAD), side("b", EVEN[:4], failed=1), "undecided", "selection", id="saved by nobody"),
        pytest.param(side("a", BAD[:4], failed=1), side("b", EVEN), "not reproduced", "1 failed", id="bad anyhow"),
        pytest.param(
            side("a", GOOD[:2], diverged=3), side("b", EVEN), "not reproduced", "3 of the 5 seeds", id="by itself"
        ),
        pytest.param(side("a", [], over_budget=5), side("b", EVEN), "not reproduced", "overspent on 5", id="never"),
        pytest.param(side("a", [], failed=5), side("b", EVEN), "undecided", "5 failed", id="perhaps our mistake"),
        pytest.param(side("a", [], timeout=5), side("b", EVEN), "undecided", "5 timeout", id="perhaps the machine"),
        pytest.param(side("a", [], diverged=5), side("b", [], diverged=5), "undecided", "5 diverged", id="both"),
        pytest.param(side("a", [], diverged=1), side("b", EVEN[:1]), "undecided", "2 are needed", id="a single one"),
        pytest.param(
            side("a", [], diverged=3), Side("0.5", constant=0.5), "not reproduced", "on 3 of the 3", id="a number"
        ),
    ],
)
def test_failures_reproduce_nothing(subject, reference, expected, words):
    found = judge("superior", 0, subject, reference, "max")
    assert found.verdict == expected
    assert words in "; ".join(found.notes)


@given(
    st.lists(st.floats(-1, 1), min_size=5, max_size=5),
    st.sets(st.integers(0, 4), min_size=1),
    st.sampled_from(["diverged", "failed", "oom", "over_budget", "timeout", "crashed"]),
    st.sampled_from(["superior", "noninferior", "ratio"]),
)
def test_no_failure_of_either_side_ends_in_a_reproduced_claim(values, lost, status, kind):
    whole = Side("a", {seed: value for seed, value in enumerate(values) if seed not in lost})
    part = Side("a", whole.values, dict.fromkeys(lost, status))
    other = side("b", 1 + SPREAD)
    assert judge(kind, 0.5, part, other, "max").verdict != "reproduced"
    assert judge(kind, 0.5, other, part, "max").verdict != "reproduced"


def test_too_few_seeds_come_with_how_many_would_tell():
    a, b = side("a", 5 + 0.012 + SPREAD), side("b", np.full(5, 5.0))
    (note,) = judge("superior", 0, a, b, "max").notes
    assert "about 16 seeds would tell" in note
    (note,) = judge("superior", 0, side("a", 5 + 0.001 + SPREAD), side("b", np.full(5, 5.0)), "max").notes
    assert "100 seeds would not tell" in note


def test_how_many_seeds_would_tell_is_what_the_exact_power_says_within_two():
    checked = 0
    for difference in np.linspace(0.005, 0.019, 30):
        a, b = side("a", 5 + difference + SPREAD), side("b", np.full(5, 5.0))
        (note,) = judge("superior", 0, a, b, "max").notes
        exact = seeds_to_separate(difference + SPREAD)
        if said := re.search(r"about (\d+) seeds", note):
            assert abs(int(said[1]) - exact) <= 2
            checked += 1
    assert checked > 20


# --- the interval of a ratio ------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.floats(-5, 20), st.floats(5, 20)), min_size=3, max_size=8),
    st.floats(-2, 4),
)
def test_a_ratio_is_in_the_interval_where_the_paired_t_test_keeps_it(pairs, ratio):
    a, b = np.array(pairs).T
    found = ratio_interval(a, b)
    beyond = a - ratio * b
    if found is None:
        assert stats.ttest_1samp(b, 0, alternative="greater").pvalue > 0.024
        return
    if beyond.std() < 1e-6 or min(abs(ratio - found.low), abs(ratio - found.high)) < 1e-6:
        return
    kept = stats.ttest_1samp(beyond, 0).pvalue > 0.05
    assert kept == (found.low <= ratio <= found.high)


def test_the_interval_of_a_ratio_covers_it():
    rng = np.random.default_rng(5)
    reps, truth = 4000, 1.25
    shared = rng.normal(size=(reps, 5))
    b = 4 + 0.8 * shared + 0.3 * rng.normal(size=(reps, 5))
    a = 5 + 0.8 * shared + 0.3 * rng.normal(size=(reps, 5))
    found = [ratio_interval(x, y) for x, y in zip(a, b, strict=True)]
    covered = np.mean([interval is not None and interval.low <= truth <= interval.high for interval in found])
    unknown = np.mean([interval is None for interval in found])
    assert unknown < 0.01
    assert 0.93 <= covered / (1 - unknown) <= 0.97


def test_no_ratio_without_a_positive_reference():
    assert ratio_interval(np.ones(3), np.array([-1.0, 0.1, 0.2])) is None
    assert ratio_interval(np.ones(3), np.array([-1.0, 3.0, 0.5])) is None, "not clear of 0"
    assert ratio_interval(np.array([]), np.array([])) is None
    assert ratio_interval(np.array([1.0]), np.array([2.0])).low is None
    found = judge("ratio", 1, side("a", [1, 2, 3]), side("b", [-1.0, 3.0, 0.5]), "max")
    assert (found.verdict, found.effect) == ("undecided", None)
    assert found.notes == ("the mean of b is not clearly above 0",)
    with pytest.raises(ValueError, match="finite"):
        ratio_interval(np.array([1.0, math.nan]), np.ones(2))


@pytest.mark.parametrize(
    ("kind", "margin", "b"), [("superior", 0.1, 0.9), ("noninferior", 0.1, 1.1), ("ratio", 0.8, 1.25)]
)
def test_a_claim_at_its_boundary_is_wrongly_decided_in_one_of_forty_experiments_on_each_side(kind, margin, b):
    rng = np.random.default_rng(7)
    counts = {"reproduced": 0, "not reproduced": 0, "undecided": 0}
    reps = 2000
    for noise in rng.normal(scale=0.05, size=(reps, 2, 5)):
        counts[judge(kind, margin, side("a", 1 + noise[0]), side("b", b + noise[1]), "max").verdict] += 1
    for decided in ("reproduced", "not reproduced"):
        assert 0.015 < counts[decided] / reps < 0.036
