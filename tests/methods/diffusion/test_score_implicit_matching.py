"""SIM: turns without data, distances, units."""

from __future__ import annotations

import torch

from kdbench.cache import Cache
from kdbench_methods.diffusion import score_implicit_matching as sim
from tests.helpers.denoisers import same_weights, smoke_task


def test_it_needs_no_data_and_watches_its_gradients(run):
    found = run("diffusion/score_implicit_matching", "digits", guidance_range=1.0)
    cost = found.outcome.cost
    assert (cost["steps"], cost["critic_updates"], cost.get("real_images", 0)) == (12, 6, 0)
    assert cost["teacher_queries"] == 6 * 2 * 8
    assert found.outcome.metrics["nfe"] == 1
    assert found.outcome.extra["gradient_tail"] >= 1
    for name in ("score", "critic/score", "gradient_norm"):
        assert len(found.column(name)) == 6


def test_units_matter_to_the_pseudo_huber_distance_alone(tmp_path):
    cache = Cache(tmp_path / "cache")

    def trained(**changes):
        params = sim.ScoreImplicitMatchingParams(**changes)
        return sim.train(smoke_task("ring", tmp_path / "job", cache), params).experts[0]

    def far(one, other):
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)

    squared = [trained(distance="l2", units=units) for units in ("denoiser", "score")]
    huber = [trained(units=units) for units in ("denoiser", "score")]
    assert far(*squared) < 1e-5
    assert far(*huber) > 1e-5
    assert not same_weights(squared[0], huber[0])
    assert all(torch.isfinite(parameter).all() for parameter in huber[1].parameters())


def test_an_interrupted_training_goes_on_with_the_fake_score_and_the_record(interrupted):
    interrupted("diffusion/score_implicit_matching", "digits", 3)
