"""DDK: the discrepancy factor and its smooth update, where they are measured, the ablations, and what they cost."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdbench.errors import JobError
from kdbench.tracks.llm.task import LLMTask
from kdbench_methods.llm.ddk import DdkParams, factor, log_discrepancy, smooth_update, train, variation

STEPS = {"limits": {"steps": 8}}
CHUNKS = 8
"""Validation chunks of the smoke task."""

# --- equations --------------------------------------------------------------------------------------------------------


def test_equation_1_by_hand():
    student, teacher = np.log([8.0, 3.0, 5.0]), np.log([4.0, 3.0, 2.0])
    assert np.exp(log_discrepancy(student, teacher, "ratio")) == pytest.approx([2, 1, 2.5])
    assert log_discrepancy(student, teacher) == pytest.approx([2, 1, 2.5])  # the logarithm of exp(ratio)
    h = np.exp([2, 1, 2.5])
    assert factor(log_discrepancy(student, teacher)) == pytest.approx(h / h.sum())
    assert factor(log_discrepancy(student, teacher, "ratio")) == pytest.approx(np.array([2, 1, 2.5]) / 5.5)


def test_equation_2_by_hand():
    r, h = np.array([0.2, 0.3, 0.5]), np.array([2.0, 1.0, 4.0])
    psi = r * h
    assert smooth_update(r, np.log(h), 0.5) == pytest.approx(0.5 * psi / psi.sum() + 0.5 / 3)


def random_factors(count, size=5):
    rng = np.random.default_rng(0)
    return [(rng.dirichlet(np.ones(size)), rng.normal(scale=20, size=size)) for _ in range(count)]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_update_is_a_distribution_above_its_floor(alpha):
    for r, log_h in random_factors(50):
        new = smooth_update(r, log_h, alpha)
        assert new.sum() == pytest.approx(1)
        assert new.min() >= (1 - alpha) / 5 - 1e-12
        assert new.max() <= alpha + (1 - alpha) / 5 + 1e-12


def test_students_as_good_everywhere_keep_uniform_weights_and_forget_others():
    uniform, skewed = np.full(4, 0.25), np.array([0.7, 0.1, 0.1, 0.1])
    assert smooth_update(uniform, np.full(4, 1.7), 0.5) == pytest.approx(uniform)
    for _ in range(40):
        skewed = smooth_update(skewed, np.full(4, 1.7), 0.5)
    assert skewed == pytest.approx(uniform, abs=1e-9)


def test_the_update_remembers_the_weights_before():
    log_h = np.log([2.0, 1.0])
    once = smooth_update([0.5, 0.5], log_h, 0.5)
    twice = smooth_update(once, log_h, 0.5)
    assert 0.5 < once[0] < twice[0]


def test_a_larger_gap_gets_more_whatever_its_size():
    """Perplexity ratios of untrained students are too large for their exponential."""
    log_h = log_discrepancy(np.array([11.0, 10.0, 9.0]), np.array([2.0, 2.0, 2.0]))
    new = smooth_update([0.2, 0.4, 0.4], log_h, 0.5)
    assert np.isfinite(new).all()
    assert new == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_without_a_floor_a_domain_can_die():
    dead = smooth_update([0.0, 0.5, 0.5], np.zeros(3), 1.0)
    assert dead.tolist() == [0, 0.5, 0.5]
    assert smooth_update(dead, np.zeros(3), 0.5)[0] == pytest.approx(1 / 6)


def test_smoothing_moves_less():
    """The same discrepancies, which fall by and by, with and without smoothing."""
    gaps = np.array([3.4, 2.8, 2.3, 1.1]) * np.linspace(1, 0.7, 10)[:, None]
    paths = {}
    for alpha in (0.5, 1.0):
        path = [factor(gaps[0])]
        for gap in gaps[1:]:
            path.append(smooth_update(path[-1], gap, alpha))
        paths[alpha] = variation(path)
    assert paths[0.5] < paths[1.0]


def test_variation_sums_total_variation_distances():
    assert variation([[1, 0], [0, 1], [0.5, 0.5]]) == pytest.approx(1.5)
    assert variation([[0.3, 0.7]]) == 0


# --- jobs -------------------------------------------------------------------------------------------------------------


def weights(result):
    """(T, 2) r of each interval, from the curve."""
    return np.stack([result.column("r/arith"), result.column("r/facts")], axis=1)


def test_weights_follow_what_is_measured_on_validation_data_at_each_interval(run):
    result = run("ddk", "text", overrides=STEPS, intervals=4)
    r, extra = weights(result), result.outcome.extra
    ratios = np.stack([result.column("ppl_ratio/arith"), result.column("ppl_ratio/facts")], axis=1)
    assert len(r) == len(ratios) == 4  # before steps 1, 3, 5, 7
    assert [row["step"] for row in result.curve if "r/arith" in row] == [0, 2, 4, 6]
    assert r[0] == pytest.approx(factor(ratios[0]))
    for before, ratio, after in zip(r, ratios[1:], r[1:], strict=False):
        assert after == pytest.approx(smooth_update(before, ratio, 0.5))
    assert extra["r_variation"] == pytest.approx(variation(r))
    assert extra["r_min"] == pytest.approx(r.min())
    assert result.outcome.cost["validation_samples"] == 4 * CHUNKS
    assert extra["drawn/arith"] + extra["drawn/facts"] == pytest.approx(1)


def test_test_data_are_judged_by_the_ratio_to_the_teacher(run):
    outcome = run("ddk", "text", overrides=STEPS, mixture="uniform").outcome
    teacher = run("teacher", "text", overrides=STEPS).outcome.metrics
    ratios = [outcome.metrics[f"perplexity/{name}"] / teacher[f"perplexity/{name}"] for name in ("arith", "facts")]
    assert [outcome.extra[f"ppl_ratio/{name}"] for name in ("arith", "facts")] == pytest.approx(ratios, rel=1e-4)
    assert outcome.extra["worst_ppl_ratio"] == pytest.approx(max(ratios), rel=1e-4)
    assert outcome.extra["mean_ppl_ratio"] == pytest.approx(sum(ratios) / 2, rel=1e-4)


def test_the_ablations_draw_as_they_say_and_pay_for_what_they_measure(run):
    made = {
        name: run("ddk", "text", overrides=STEPS, mixture=name, intervals=4)
        for name in ("direct", "initial", "uniform", "corpus")
    }
    assert len(weights(made["direct"])) == 4
    for name in ("initial", "uniform", "corpus"):
        assert made[name].outcome.extra["r_variation"] == 0
    assert weights(made["uniform"])[0] == pytest.approx([0.5, 0.5])
    assert weights(made["initial"])[0] == pytest.approx(weights(made["direct"])[0])
    assert weights(made["corpus"])[0] != pytest.approx([0.5, 0.5], abs=0.01)
    samples = {name: each.outcome.cost.get("validation_samples", 0) for name, each in made.items()}
    assert samples == {"direct": 4 * CHUNKS, "initial": CHUNKS, "uniform": 0, "corpus": 0}
    costs = {name: each.outcome.cost for name, each in made.items()}
    assert costs["uniform"]["flops"] < costs["initial"]["flops"] < costs["direct"]["flops"]
    assert costs["initial"]["teacher_queries"] == costs["uniform"]["teacher_queries"] + CHUNKS


def test_a_uniform_start_and_the_plain_ratio(run):
    result = run("ddk", "text", overrides=STEPS, start="uniform", discrepancy="ratio", intervals=2)
    ratio = np.array([result.column("ppl_ratio/arith")[1], result.column("ppl_ratio/facts")[1]])
    assert weights(result)[0] == pytest.approx([0.5, 0.5])
    assert weights(result)[1] == pytest.approx(smooth_update([0.5, 0.5], np.log(ratio), 0.5))


def test_continued_pre_training_asks_no_teacher(run):
    plain = run("ddk", "text", overrides=STEPS, mixture="corpus", gamma=0.0)
    assert "teacher_queries" not in plain.outcome.cost
    assert plain.column("kd") == []
    other = run("ddk", "text", overrides=STEPS, mixture="corpus", gamma=0.5, temperature=2.0)
    assert min(other.column("kd")) > 0


def test_what_was_interrupted_ends_as_if_it_had_not_been(interrupted, tmp_path):
    interrupted("ddk", "text", 7, {"limits": {"steps": 12}}, intervals=6)
    tables = [json.loads((tmp_path / name / "artifacts/domains.json").read_text()) for name in ("whole", "again")]
    assert tables[0] == tables[1]
    assert sum(tables[0]["drawn"]) == 12 * 4


def test_data_of_one_domain_are_refused(registry, tmp_path):
    spec = registry.task("llm/text", "smoke", {"data": {"domains": ["arith"]}})
    task = LLMTask(spec, seed=0, method="llm/ddk", folder=tmp_path)
    with pytest.raises(JobError, match="at least two domains"):
        train(task, DdkParams())
