"""Decoupled DMD: terms, levels and what replaces distribution matching."""

from __future__ import annotations

import pytest

SMALL = {"limits": {"steps": 12}, "evaluation": {"samples": 20, "val_samples": 10}}


@pytest.mark.parametrize("terms", ["both", "ca", "dm", "ca+moments", "ca+gan"])
def test_every_regularizer(run, terms):
    found = run("diffusion/decoupled_dmd", "digits", overrides=SMALL, terms=terms, moments_samples=8)
    cost = found.outcome.cost
    critic = terms in ("both", "dm", "ca+gan")
    assert cost["steps"] == (12 if critic else 2)
    assert cost.get("critic_updates", 0) == (10 if critic else 0)
    assert ("real_images" in cost) == (terms == "ca+gan")
    assert found.outcome.metrics["nfe"] == 4
    logged = {name for row in found.curve for name in row}
    assert ("dm" in logged, "ca" in logged) == (terms in ("both", "dm"), terms != "dm")
    assert ("critic/score" in logged, "critic/gan" in logged) == (terms in ("both", "dm"), terms == "ca+gan")
    assert {"saturation", "saturation_gap", "contrast_gap", "band0", "band3", "early_fd"} <= set(found.outcome.extra)


def test_prompts(run):
    found = run("diffusion/decoupled_dmd", "attributes", overrides=SMALL, schedule="independent")
    assert "early_prompt_accuracy" in found.outcome.extra


def test_an_interrupted_training_goes_on(interrupted):
    interrupted("diffusion/decoupled_dmd", "digits", 3, SMALL, ratio=1, terms="ca+gan")
