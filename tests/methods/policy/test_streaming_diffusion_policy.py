"""Streaming diffusion policy: what it is trained on, what it costs, and what it is with one chunk."""

from __future__ import annotations

import pytest


def test_it_costs_the_share_of_its_chunks(run):
    four = {"student": {"horizon": 18, "executed": 4}}
    stream = run("policy/streaming_diffusion_policy", "nav-bimodal", overrides=four, levels=4).outcome
    whole = run("policy/ddpm_policy", "nav-bimodal", overrides=four, levels=4).outcome
    assert stream.metrics["nfe"] / whole.metrics["nfe"] == pytest.approx(0.25, rel=0.12)  # the last chunk may be cut
    assert stream.extra["evaluations"] == pytest.approx(1.0, rel=0.12)
    assert {"roughness_border", "roughness_inside", "success_jump"} <= set(stream.extra)
    assert stream.cost["steps"] == whole.cost["steps"]


def test_with_one_chunk_and_one_level_each_it_is_trained_as_the_ordinary_policy(run):
    """Without chunked rows levels are uniform, one for all positions: losses have the scale of the ordinary ones."""
    one = {"student": {"horizon": 9, "executed": 8}}
    stream = run("policy/streaming_diffusion_policy", "nav-bimodal", overrides=one, levels=4, chunked=0.0)
    whole = run("policy/ddpm_policy", "nav-bimodal", overrides=one, levels=4)
    assert stream.outcome.metrics["nfe"] == whole.outcome.metrics["nfe"]
    assert stream.column("loss")[0] == pytest.approx(whole.column("loss")[0], rel=0.5)


def test_levels_of_training_rows_are_those_of_the_buffer(run, monkeypatch):
    from kdbench.tracks.policy.blocks import denoising

    seen = []
    loss = denoising.noise_loss

    def watched(network, schedule, batch, level, noise):
        seen.append(level)
        return loss(network, schedule, batch, level, noise)

    monkeypatch.setattr(denoising, "noise_loss", watched)
    run("policy/streaming_diffusion_policy", "nav-bimodal", levels=8, chunked=1.0)
    assert all(level.shape[1] == 18 for level in seen)
    assert all(((level[:, -1] - level[:, 0]) == 4).all() for level in seen)  # two chunks of eight levels
