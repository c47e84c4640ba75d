"""Performance-guided quotas, hard negatives, and the guard against leaks."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.tracks.llm.blocks.guidance import Guard, hard_negatives, performance, quotas

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
GUESSES = np.array([0, 0, 0, 0, 2, 1, 1, 1])


def test_the_report_by_class_and_its_confusions():
    found = performance(GUESSES, LABELS, 4)
    assert [row.support for row in found.report] == [4, 2, 2, 0]
    assert found.report[0].f1 == 1
    assert found.report[1].precision == pytest.approx(1 / 3)
    assert found.report[1].recall == pytest.approx(1 / 2)
    assert found.f1[2] == found.f1[3] == 0
    assert found.confusions == ((2, 1, 2), (1, 2, 1))


def test_quotas_go_to_weak_and_confused_classes():
    found = performance(GUESSES, LABELS, 4)
    wanted = quotas(found, 4, 60)
    assert wanted.sum() == 60
    assert wanted[0] == 0  # always right, never confused
    assert wanted[2] > wanted[1] > 0  # both are confused, and the second has the better F1
    assert wanted[2] > wanted[3]  # equal F1, but one takes part in confusions
    without = quotas(found, 4, 60, confusion_weight=0)
    assert without[2] == without[3]


@pytest.mark.parametrize("total", [1, 7, 60])
def test_without_a_report_or_a_mistake_quotas_are_even(total):
    for found in (None, performance(LABELS, LABELS, 3)):
        wanted = quotas(found, 3, total)
        assert wanted.sum() == total
        assert wanted.max() - wanted.min() <= 1


def test_hard_negatives_are_the_surest_mistakes_with_their_true_classes():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]])
    texts, labels = ["a", "b", "c", "d"], np.array([1, 1, 1, 0])
    found = hard_negatives(p, texts, labels, 5)
    assert [(m.text, m.label, m.predicted) for m in found] == [("a", 1, 0), ("b", 1, 0)]
    assert found[0].confidence == pytest.approx(0.9)
    assert [m.text for m in hard_negatives(p, texts, labels, 1)] == ["a"]
    assert [m.text for m in hard_negatives(p, texts, labels, 5, least=0.7)] == ["a"]


PROTECTED = "Return the canonical path of the specified filename, following any symbolic links."


@pytest.mark.parametrize(
    "text",
    [
        PROTECTED,
        PROTECTED.upper().replace(",", " - "),
        "Return the canonical path of the specified filename, following some other links",
        "First some words of its own. " + PROTECTED,
        "the canonical path of the specified filename",
    ],
)
def test_what_repeats_a_protected_text_is_a_leak(text):
    guard = Guard()
    guard.add([PROTECTED], protected=True)
    assert not guard.admit(text)
    assert (guard.leaks, guard.repeats) == (1, 0)


def test_new_texts_are_let_through_once():
    guard = Guard()
    guard.add([PROTECTED], protected=True)
    for text in ("Open the file and return its canonical path.", "Yes.", "Close all windows of the application now"):
        assert guard.admit(text)
        assert not guard.admit(text + "!")
    assert (guard.leaks, guard.repeats) == (0, 3)
