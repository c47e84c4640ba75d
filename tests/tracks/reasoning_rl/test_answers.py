"""Answers in free text."""

from __future__ import annotations

import pytest

from kdbench.tracks.reasoning_rl.data.answers import boxed, number, same, stated


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{1} or rather \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("3 + 4 = 7\n#### 7", "7"),
        ("The answer is: 12.\n", "12"),
        ("The final answer is 1,200.", "1,200"),
        ("I do not know", None),
        ("\\boxed{1", None),
    ],
)
def test_the_stated_answer_is_found(text, answer):
    assert stated(text) == answer


def test_braces_are_balanced():
    assert boxed("\\boxed{a{b}c} d}") == "a{b}c"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("\\frac{3}{4}", "0.75"),
        ("\\dfrac{3}{4}", "3/4"),
        ("$1,000$", "1000"),
        ("50\\%", "50"),
        ("\\text{north}", "North"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("90^\\circ", "90"),
    ],
)
def test_other_ways_to_write_an_answer_are_the_same(first, second):
    assert same(first, second)


def test_other_answers_are_not():
    assert not same("3", "4")
    assert not same("x+1", "x-1")
    assert number("1/0") is None
    assert number("two") is None
