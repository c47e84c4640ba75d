"""f-distill: DMD2 with weights."""

from __future__ import annotations

import pytest

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench_methods.diffusion import dmd2, f_distill
from tests.helpers.denoisers import same_weights, smoke_task


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("steps", [1, 2])
def test_reverse_kl_is_dmd2_bit_for_bit(tmp_path, cache, steps):
    """Where both have the same random numbers and the discriminator of DMD2; another divergence is not."""
    shared = {"ratio": 2, "steps": steps}

    def trained(module, params):
        return module.train(smoke_task("digits", tmp_path / module.__name__, cache), params).experts[0]

    wanted = trained(dmd2, dmd2.Dmd2Params(**shared))
    weighted = {"discriminator": "critic", **shared}
    assert same_weights(trained(f_distill, f_distill.FDistillParams(divergence="rkl", **weighted)), wanted)
    assert not same_weights(trained(f_distill, f_distill.FDistillParams(divergence="kl", **weighted)), wanted)


def test_weights_and_ratios_are_reported(run):
    found = run("diffusion/f_distill", "ring")
    extra = found.outcome.extra
    assert extra["h_min"] < 1 < extra["h_max"]
    assert extra["h_mean"] == pytest.approx(1, abs=1e-4)
    assert {"gradient_noise", "critic_error", "log_ratio_correlation", "log_ratio_error"} <= set(extra)
    for name in ("dmd", "gan", "critic/score", "critic/gan", "gan_accuracy", "h_max"):
        assert len(found.column(name)) == 2


def test_the_discriminator_reads_the_teacher_and_trains_heads_alone(tmp_path, cache):
    task = smoke_task("digits", tmp_path / "job", cache)
    f_distill.train(task, f_distill.FDistillParams(ratio=2))
    assert task.changed_teachers() == []
    assert task.budget.spent["teacher_queries"] == 4 * 2 * 8 + 8 * 2 * 8  # scores and logits, real and generated ones


@pytest.mark.parametrize("wrong", [{"gan_critic_weight": 0}, {"gan_weight": 0, "discriminator": "critic"}])
def test_there_is_no_ratio_without_discriminator(tmp_path, cache, wrong):
    with pytest.raises(UsageError, match="needs a discriminator"):
        f_distill.train(smoke_task("digits", tmp_path / "job", cache), f_distill.FDistillParams(**wrong))


def test_an_interrupted_training_goes_on_with_heads_and_means(interrupted):
    interrupted("diffusion/f_distill", "digits", 3, ratio=1, ratio_rate=0.9)
