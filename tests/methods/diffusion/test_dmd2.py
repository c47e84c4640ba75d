"""DMD2: turns, adversary, steps."""

from __future__ import annotations

import pytest

from kdbench.cache import Cache
from kdbench_methods.diffusion import diff_instruct, dmd2
from tests.helpers.denoisers import same_weights, smoke_task


def test_the_critic_moves_five_times_as_often_and_sees_data(run):
    found = run("diffusion/dmd2", "digits")
    cost = found.outcome.cost
    assert (cost["steps"], cost["critic_updates"]) == (12, 10)
    assert cost["real_images"] == 12 * 8
    assert cost["teacher_queries"] == 2 * 8
    assert {"gan_accuracy_fake", "gan_accuracy_train", "gan_accuracy_val"} <= set(found.outcome.extra)
    for name in ("dmd", "gan", "critic/score", "critic/gan", "gan_accuracy", "gap"):
        assert len(found.column(name)) == 2


def test_as_many_updates_of_the_generator_with_fewer_of_the_critic(run):
    found = run("diffusion/dmd2", "ring", ratio=1, pace=5)
    assert (found.outcome.cost["steps"], found.outcome.cost["critic_updates"]) == (4, 2)
    assert "critic_error" in found.outcome.extra


def test_without_adversary_and_with_one_update_it_is_diff_instruct(tmp_path):
    """Bit for bit, where both have the same random numbers: the adversary's are streams of their own."""
    cache = Cache(tmp_path / "cache")
    models = [
        module.train(smoke_task("ring", tmp_path / name, cache), params)
        for name, module, params in (
            ("one", diff_instruct, diff_instruct.DiffInstructParams()),
            ("two", dmd2, dmd2.Dmd2Params(gan_weight=0, ratio=1, clip=0)),
        )
    ]
    assert same_weights(*(model.experts[0] for model in models))
    assert not same_weights(models[0].experts[0], smoke_task("ring", tmp_path, cache).student())


@pytest.mark.parametrize("inputs", ["simulated", "noised"])
def test_several_steps(run, inputs):
    found = run("diffusion/dmd2", "digits", steps=4, inputs=inputs, gan_weight=0)
    assert found.outcome.metrics["nfe"] == 4
    assert found.outcome.cost.get("real_images", 0) == (12 * 8 if inputs == "noised" else 0)


def test_an_interrupted_training_goes_on_with_critic_and_head(interrupted):
    interrupted("diffusion/dmd2", "digits", 3, ratio=1, steps=2)
