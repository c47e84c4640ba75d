"""Consistency distillation as a baseline."""

from __future__ import annotations


def test_it_learns_from_the_data_and_the_teacher_s_steps(run):
    found = run("diffusion/cd", "ring")
    assert found.outcome.metrics["nfe"] == 1
    assert found.outcome.cost["teacher_queries"] == 12 * 16
    assert found.outcome.cost["real_images"] == 12 * 16
    four = run("diffusion/cd", "ring", steps=4, metric="mse", grid=8)
    assert four.outcome.metrics["nfe"] == 4
    assert found.column("loss") != four.column("loss")


def test_a_target_that_forgets_at_once_is_another(run):
    slow, fast = (run("diffusion/cd", "ring", half_life=images, lr=0.01).column("loss") for images in (1e6, 1.0))
    assert slow[0] == fast[0]
    assert slow[-1] != fast[-1]


def test_an_interrupted_training_goes_on_with_its_target(interrupted):
    interrupted("diffusion/cd", "ring", 5)
