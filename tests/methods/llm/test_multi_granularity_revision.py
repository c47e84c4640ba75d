"""Multi-granularity semantic revision: what is left without its parts, what it measures, what it refuses."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from kdbench.errors import UsageError
from kdbench_methods.llm.multi_granularity_revision import MultiGranularityRevisionParams, train

SLUG = "multi_granularity_revision"
NOTHING = {"share": 0.0, "ce_weight": 0.0, "span_weight": 0.0}
SMALL = {"pool": 8, "refresh": 2, "max_new": 6, "probes": 8}


def test_without_its_parts_it_is_forward_kl(run):
    kd = run("kd_fkl", "instruct").outcome.metrics
    assert run(SLUG, "instruct", token_loss="fkl", **NOTHING).outcome.metrics == kd
    opened = run(SLUG, "instruct", token_loss="fixed", low=0.0, high=1.0, **NOTHING).outcome.metrics
    assert opened["loss"] == pytest.approx(kd["loss"], rel=1e-4)


def test_the_cross_entropy_alone_is_training_on_the_data(run):
    only = {"share": 0.0, "token_weight": 0.0, "span_weight": 0.0, "ce": "all"}
    assert run(SLUG, "instruct", **only).outcome.metrics == run("sft", "instruct").outcome.metrics


@pytest.mark.parametrize("task", ["instruct", "text"])
def test_a_job_learns_its_quantiles_and_measures_the_revision(run, tmp_path, task):
    result = run(SLUG, task, share=0.8, top_k=8, hidden=4, **SMALL)
    extra = result.outcome.extra
    start = {"low": 0.02, "high": 0.98}
    assert all(result.column(name)[0] == pytest.approx(value, rel=1e-3) for name, value in start.items())
    assert any(result.column(name)[-1] != pytest.approx(value, rel=1e-6) for name, value in start.items())
    assert len(load_file(next(tmp_path.rglob("quantiles.safetensors")))) == 4
    deciles = json.loads(next(tmp_path.rglob("quantiles.json")).read_text())["deciles"]
    assert all(len(row) == 11 and row == sorted(row) for row in deciles.values())
    assert 0 < extra["low_quantile"] < extra["high_quantile"] < 1
    assert extra["open_region_error"] < 1e-5
    assert 0 < extra["revised_share"] <= 1
    assert 0 <= extra["loglik_rise_share"] <= 1
    assert ("exact_match_revision_gain" in extra) == (task == "instruct")
    assert {"ce", "tokens", "spans"} <= result.curve[-1].keys() | result.curve[0].keys()


def test_each_variant_learns_something_else(run):
    variants = [
        {},
        {"sequence": "substitute", "choice": "sample", "corrections": 2},
        {"sequence": "raw", "clip": "cut"},
        {"sequence": "teacher", "spans": "anywhere"},
        {"span_weight": 50.0},
    ]
    found = [
        run(SLUG, "instruct", share=1.0, ce="all", **SMALL, **params).outcome.metrics["loss"] for params in variants
    ]
    assert len(set(found)) == len(variants)


def test_written_sequences_without_a_term_are_refused():
    with pytest.raises(UsageError, match="no term is left"):
        train(None, MultiGranularityRevisionParams(token_weight=0.0, span_weight=0.0))
