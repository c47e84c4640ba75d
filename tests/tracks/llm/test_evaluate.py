"""Metrics against values known by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.tracks.llm import evaluate
from kdbench.tracks.llm.gap import gate
from kdbench.tracks.llm.spec import Gate


def test_calibration_of_a_calibrated_and_of_an_overconfident_model():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 1, 50_000)
    assert evaluate.expected_calibration_error(confidence, rng.random(50_000) < confidence) < 0.02
    assert evaluate.expected_calibration_error(np.full(100, 0.9), np.zeros(100)) == pytest.approx(0.9)
    assert math.isnan(evaluate.expected_calibration_error(np.array([]), np.array([])))


def test_rouge_takes_the_best_reference():
    assert evaluate.rouge_l(["the cat sat", "a dog"], "a dog") == 1
    assert evaluate.rouge_l(["the cat sat"], "nothing alike") == 0
    # longest common subsequence 2 of 3 and 2: P = 1, R = 2/3
    assert evaluate.rouge_l(["the cat sat"], "the sat") == pytest.approx(0.8)


def test_distinct_counts_bigrams():
    assert evaluate.distinct([["a", "b", "a", "b"]]) == pytest.approx(2 / 3)
    assert evaluate.distinct([["a"]]) == 0


def test_class_metrics_of_known_logits():
    logits, labels = torch.tensor([[10.0, 0.0], [0.0, 10.0], [10.0, 0.0]]), torch.tensor([0, 1, 1])
    values = evaluate.class_metrics(logits, labels)
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["macro_f1"] == pytest.approx(2 / 3)
    assert values["nll"] == pytest.approx(10 / 3, abs=1e-3)


def test_the_gate_names_what_does_not_suffice():
    good = {
        "teacher_exact_match": 0.6,
        "student_exact_match": 0.2,
        "teacher_perplexity": 1.5,
        "student_perplexity": 2.5,
    }
    assert gate(good, Gate()) == []
    assert "0.100" in gate({**good, "teacher_exact_match": 0.3}, Gate())[0]
    assert "perplexity" in gate({**good, "teacher_perplexity": 2.3}, Gate())[0]
    assert gate({"teacher_accuracy": 0.6, "student_accuracy": 0.5}, Gate(accuracy=0.2)) != []
    assert gate({"teacher_perplexity": 2.0, "student_perplexity": 3.0}, Gate()) == [], "no exact match, none asked for"
