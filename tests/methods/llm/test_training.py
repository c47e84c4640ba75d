"""Whole jobs on the smallest tasks: what methods have in common, what they spend, and where they coincide."""

from __future__ import annotations

import pytest

LONGER = {"limits": {"steps": 12}}


def same(first, second) -> bool:
    return first.outcome.metrics == second.outcome.metrics


# --- methods that coincide at the ends of their parameters ------------------------------------------------------------


@pytest.mark.parametrize(
    ("slug", "params", "other"),
    [
        ("kd_jsd", {"beta": 0.0}, "kd_fkl"),
        ("kd_jsd", {"beta": 1.0}, "kd_rkl"),
        ("kd_sfkl", {"lam": 0.0}, "kd_fkl"),
        ("kd_srkl", {"lam": 0.0}, "kd_rkl"),
        ("kd_fkl", {"kd_ratio": 0.0}, "sft"),
        ("adakd", {"c": 0.0, "focus": "all"}, "kd_rkl"),
        ("adakd", {"c": 0.0, "warmup": 0.99, "base": "fkl"}, "kd_fkl"),
        ("gkd", {"lam": 0.0, "beta": 0.0, "steps_fraction": 1.0}, "kd_fkl"),
        ("distillm", {"lam": 0.0, "steps_fraction": 1.0, "tolerance": 10.0}, "kd_fkl"),
        ("miniplm", {"selection": "all"}, "sft"),
    ],
)
def test_one_method_contains_another(run, slug, params, other):
    """The same batches, the same initialisation and the same loss: exactly the same student."""
    task = "text" if slug == "miniplm" else "instruct"
    assert same(run(slug, task, **params), run(other, task))


def test_taid_at_its_end_trains_as_forward_kl_and_at_its_start_not_at_all(run):
    full = run("taid", "instruct", t_start=1.0)
    plain = run("kd_fkl", "instruct")
    assert full.outcome.metrics["loss"] == pytest.approx(plain.outcome.metrics["loss"], rel=1e-4)
    still = run("taid", "instruct", t_start=0.0, t_end=0.0)
    start = run("student_init", "instruct")
    assert still.outcome.metrics["loss"] == pytest.approx(start.outcome.metrics["loss"], rel=1e-4)
    assert full.outcome.metrics["loss"] < start.outcome.metrics["loss"]


# --- trajectories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["instruct", "text"])
def test_taid_logs_t_ahead_of_its_linear_schedule_and_measures_head_and_tail(run, task):
    result = run("taid", task, overrides=LONGER, alpha=0.5)
    t, linear = result.column("t"), result.column("t_linear")
    assert len(t) == 12
    assert t == sorted(t)
    assert all(a >= b for a, b in zip(t, linear, strict=True))
    assert t[3] > linear[3]
    assert t[-1] == 1.0
    assert set(result.outcome.extra) == {
        f"{who}_{part}_mass" for who in ("student", "teacher") for part in ("head", "tail")
    }


def test_taid_without_adaptation_is_linear(run):
    result = run("taid", "instruct", adaptive=False)
    assert result.column("t") == result.column("t_linear")


def test_adakd_logs_its_controller_and_trains_on_fewer_tokens_once_the_loss_falls(run):
    result = run("adakd", "instruct", overrides={"limits": {"steps": 30}}, decay=0.0, eps=0.001, sigma=0.2)
    r = result.column("r")
    assert r[0] == 1.0
    assert min(r) < 1.0
    assert min(r) >= 0.1
    cost = result.outcome.cost
    assert 0 < cost["trained_token_fraction"] < 1
    assert cost["trained_tokens"] > 0


@pytest.mark.parametrize("params", [{"focus": "random"}, {"direction": "reversed"}, {"direction": "none"}])
def test_ablations_of_adakd_change_the_student(run, params):
    """The first update of r comes after warm-up, so that random tokens need a few steps to differ."""
    settings = {"decay": 0.0, "eps": 0.001, "sigma": 0.5}
    plain = run("adakd", "instruct", overrides=LONGER, **settings)
    assert not same(run("adakd", "instruct", overrides=LONGER, **settings, **params), plain)


@pytest.mark.parametrize("base", ["fkl", "rkl", "jsd", "sym_kl", "sfkl", "srkl", "akl", "tvd"])
def test_adakd_adapts_any_divergence(run, base):
    run("adakd", "instruct", base=base)


@pytest.mark.parametrize("data", ["gkd", "distillm"])
def test_adakd_adapts_any_source_of_data(run, data):
    result = run("adakd", "instruct", overrides=LONGER, data=data, max_new=4)
    assert result.outcome.cost["steps"] == 4  # 0.4 of 12


def test_ctkd_raises_its_temperature_against_the_student(run):
    result = run("ctkd", "instruct", overrides=LONGER, start=0.0)
    temperatures = result.column("temperature")
    assert temperatures[0] == pytest.approx(11, abs=0.5)
    assert temperatures[-1] != temperatures[0]
    assert all(1 <= value <= 21 for value in temperatures)
    assert result.column("reversal")[-1] == 1.0


# --- on-policy methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slug", "params"),
    [
        ("gkd", {"lam": 1.0}),
        ("gkd", {"lam": 0.5, "seq_kd": True}),
        ("imitkd", {"advice": "top1"}),
        ("imitkd", {"advice": "full"}),
        ("minillm", {}),
        ("minillm", {"lm_ratio": 0.5}),
        ("distillm", {"threshold": 1.0}),
        ("seqkd", {"responses": 8}),
    ],
)
@pytest.mark.parametrize("task", ["instruct", "text"])
def test_generated_tokens_are_metered_and_jobs_repeat(run, slug, params, task):
    first = run(slug, task, overrides=LONGER, max_new=4, **params)
    assert first.outcome.cost["generated_tokens"] > 0
    assert first.outcome.cost["steps"] == (12 if slug == "seqkd" else 4)
    assert same(run(slug, task, overrides=LONGER, max_new=4, **params), first)
    assert not same(run(slug, task, seed=1, overrides=LONGER, max_new=4, **params), first)


def test_distillm_logs_validation_losses_and_samples_only_above_its_threshold(run):
    quiet = run("distillm", "instruct", overrides=LONGER, tolerance=10.0)
    assert "generated_tokens" not in quiet.outcome.cost
    assert len(quiet.column("validation_loss")) >= 1
    eager = run("distillm", "instruct", overrides=LONGER, threshold=1.0, capacity=4, max_new=4)
    counts = eager.curve[-1] if "fresh" in eager.curve[-1] else next(r for r in reversed(eager.curve) if "fresh" in r)
    assert counts["data"] == 0
    assert counts["fresh"] >= 1


def test_seqkd_asks_the_teacher_for_no_more_responses_than_it_can_train_on(run):
    few = run("seqkd", "instruct", responses=3, max_new=4)
    many = run("seqkd", "instruct", responses=10_000, max_new=4)
    assert few.outcome.cost["generated_tokens"] <= 3 * 4
    assert many.outcome.cost["generated_tokens"] <= 16 * 4  # four steps of four


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["instruct", "text"])
def test_uld_distils_into_a_student_of_another_tokenizer(run, task):
    own = run("uld", task)
    other = run("uld", task, tokenizer="bytes")
    assert other.outcome.cost["parameters"] < own.outcome.cost["parameters"]  # a vocabulary of bytes
    assert other.outcome.cost["teacher_queries"] == own.outcome.cost["teacher_queries"] == 16
