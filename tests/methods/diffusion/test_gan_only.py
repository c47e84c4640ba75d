"""A GAN alone."""

from __future__ import annotations

import pytest

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench_methods.diffusion import gan_only
from tests.helpers.denoisers import same_weights, smoke_task


def test_it_learns_from_data_alone(run):
    found = run("diffusion/gan_only", "ring")
    cost = found.outcome.cost
    assert (cost["steps"], cost["critic_updates"], cost["real_images"]) == (12, 6, 12 * 16)
    assert "teacher_queries" not in cost
    assert {"gan_accuracy_fake", "gan_accuracy_train", "gan_accuracy_val"} <= set(found.outcome.extra)
    assert len(found.column("critic/gan")) == 6


def test_penalty_losses_and_first_weights(run):
    plain = run("diffusion/gan_only", "ring")
    lazy = run("diffusion/gan_only", "ring", r1=0.1, every=4)
    assert plain.column("critic/gan")[0] == lazy.column("critic/gan")[0]
    assert plain.column("critic/gan")[1] != lazy.column("critic/gan")[1]
    assert len(lazy.column("critic/r1")) == 2  # at updates 1 and 5 of 6
    hinge = run("diffusion/gan_only", "ring", loss="hinge", init="scratch", trunk="scratch")
    assert hinge.column("gan") != plain.column("gan")


def test_fresh_networks_have_learned_nothing(tmp_path):
    task = smoke_task("ring", tmp_path, Cache(tmp_path))
    assert not same_weights(task.fresh_student(), task.student())
    with pytest.raises(UsageError, match="smoothed"):
        gan_only.train(task, gan_only.GanOnlyParams(smoothing=0.1))


def test_an_interrupted_training_goes_on(interrupted):
    interrupted("diffusion/gan_only", "ring", 3, r1=0.1, every=4)
