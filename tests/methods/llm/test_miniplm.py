"""MiniPLM: difference sampling, its ablations, one selection for many students, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench_methods.llm.miniplm import difference, equal_flops_steps, keep_top

NOISY = {"data": {"noise": 0.4, "bytes_per_domain": 20000}, "limits": {"steps": 8}}


def test_a_reference_that_equals_the_teacher_has_nothing_to_say():
    nll = np.random.default_rng(0).random(50)
    assert (difference(nll, nll) == 0).all()


def test_chunks_that_only_the_teacher_understands_are_kept_in_the_order_of_the_corpus():
    teacher, reference = np.array([3.0, 1.0, 2.0, 1.0, 5.0]), np.array([3.0, 4.0, 2.5, 1.2, 4.0])
    assert keep_top(difference(reference, teacher), 0.4).tolist() == [1, 2]
    assert keep_top(difference(reference, teacher), 0.6).tolist() == [1, 2, 3]
    assert keep_top(difference(reference, teacher), 1.0).tolist() == [0, 1, 2, 3, 4]


def test_at_least_one_chunk_is_kept_and_ties_go_to_the_earlier():
    assert keep_top(np.zeros(10), 0.01).tolist() == [0]
    assert keep_top(np.zeros(10), 0.3).tolist() == [0, 1, 2]


def test_online_distillation_gets_the_steps_that_its_teacher_leaves_it():
    assert equal_flops_steps(300, 1000, 0) == 300
    assert equal_flops_steps(300, 1000, 3000) == 150  # the teacher's forward costs as much as the student's step
    assert equal_flops_steps(10, 1, 10**9) == 1


def test_what_is_kept_is_described_with_its_share_of_the_injected_noise(run):
    extra = run("miniplm", "text", overrides=NOISY).outcome.extra
    assert extra["kept_fraction"] == pytest.approx(0.5, abs=0.01)
    assert {"kept_noise", "kept_noise/shuffled", "kept_noise/boilerplate"} <= set(extra)
    assert 0 <= extra["kept_noise"] <= 1
    assert {"kept_distinct_2", "kept_distinct_3", "kept_teacher_nll", "kept_fraction/facts"} <= set(extra)


def test_the_ablations_choose_differently(run):
    kept = {
        name: run("miniplm", "text", overrides=NOISY, selection=name).outcome.extra
        for name in ("difference", "random", "low_perplexity", "all")
    }
    assert kept["low_perplexity"]["kept_teacher_nll"] < kept["random"]["kept_teacher_nll"]
    assert kept["low_perplexity"]["kept_teacher_nll"] < kept["difference"]["kept_teacher_nll"]
    assert kept["all"]["kept_fraction"] == 1
    assert kept["all"]["kept_noise"] == 1


def test_choosing_is_metered_whether_it_was_cached_or_not_and_shared_among_students(run):
    first = run("miniplm", "text", seed=3, overrides=NOISY).outcome.cost
    again = run("miniplm", "text", seed=3, overrides=NOISY).outcome.cost
    for meter in ("flops", "teacher_queries", "aux_steps", "samples"):
        assert first[meter] == again[meter]
    assert first["aux_steps"] == 8
    assert first["steps"] == 8
    shared = run("miniplm", "text", seed=3, overrides=NOISY, students=4).outcome.cost
    assert shared["teacher_queries"] == first["teacher_queries"] / 4
    assert shared["flops"] < first["flops"]
    random = run("miniplm", "text", seed=3, overrides=NOISY, selection="random").outcome.cost
    assert "teacher_queries" not in random
    assert "aux_steps" not in random


def test_one_selection_serves_students_of_other_families_and_tokenizers(run):
    """The chunks that are kept do not depend on who reads them."""
    own = run("miniplm", "text", overrides=NOISY).outcome
    other = run("miniplm", "text", overrides=NOISY, family="gpt2", tokenizer="bytes").outcome
    assert other.extra == own.extra
    assert other.metrics["bits_per_byte"] != own.metrics["bits_per_byte"]


def test_online_distillation_takes_fewer_steps_and_asks_the_teacher_in_each(run):
    cost = run("miniplm", "text", overrides=NOISY, selection="online_kd").outcome.cost
    assert 1 <= cost["steps"] < 8
    assert cost["teacher_queries"] == 4 * cost["steps"]
