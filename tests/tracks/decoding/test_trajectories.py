"""Trajectories are of the model itself, hold every refinement, and give rows with the noise that is asked for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.decoding.blocks.convergence import settling
from kdbench.tracks.decoding.blocks.trajectories import (
    Collection,
    Trajectory,
    choose,
    collect,
    example,
    noisiness,
    wanted,
)
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from tests.helpers.causal import gpt2

LIMITS = {"max_new": 18, "eos": 4, "pad": 0}
PROMPTS = [[5, 6, 7], [8], [9, 9, 10, 11], [5, 11]]


@pytest.fixture(scope="module")
def model():
    return gpt2(vocabulary=12, seed=3)


@pytest.fixture(scope="module")
def collection(model):
    return collect(model, PROMPTS, 4, **LIMITS)


def test_fixed_points_are_the_greedy_response(model, collection):
    alone = Autoregressive().decode(model, PROMPTS, **LIMITS).tokens
    assert [one.response for one in collection.trajectories] == alone
    assert [one.prompt for one in collection.trajectories] == PROMPTS
    assert collection.generated == sum(map(len, alone))
    assert collection.read > collection.generated


def test_each_iterate_is_what_the_model_says_of_the_one_before_it(model, collection):
    compared = 0
    for one in collection.trajectories:
        text = list(one.prompt)
        for block in one.blocks:
            for before, later in pairwise(block):
                with torch.no_grad():
                    logits = model(torch.tensor([[*text, *before]])).logits[0]
                said = logits.argmax(-1)[len(text) - 1 : -1].tolist()
                assert later == said
                compared += 1
            text += block[-1]
    assert compared > 10


def test_noise_never_grows_along_a_trajectory(collection):
    for one in collection.trajectories:
        for block in one.blocks:
            noise = [noisiness(iterate, block[-1]) for iterate in block]
            assert noise == sorted(noise, reverse=True)
            assert noise[-1] == 0
            assert all(share > 0 for share in noise[:-1])


def test_the_wanted_noise_rises_over_a_window_and_begins_anew():
    rng = np.random.default_rng(0)
    rising = [wanted(number, 3, "progressive", rng) for number in range(7)]
    assert rising == [0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.0]
    assert [wanted(number, 3, "reverse", rng) for number in range(4)] == [1.0, 0.5, 0.0, 1.0]
    drawn = [wanted(number, 3, "random", rng) for number in range(300)]
    assert set(drawn) == {0.0, 0.5, 1.0}
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.1)


def test_the_iterate_with_the_nearest_noise_is_taken():
    block = [[9, 9, 9, 9], [1, 9, 9, 9], [1, 2, 3, 9], [1, 2, 3, 4]]  # 1, 3/4, 1/4, 0
    assert [choose(block, ratio) for ratio in (0.0, 0.3, 0.6, 0.9, 1.0)] == [3, 2, 1, 0, 0]
    assert choose(block, 0.5) == 1  # as near as the next one, and earlier
    assert choose([[1, 2]], 1.0) == 0


def test_a_row_has_a_block_of_each_noise_and_its_fixed_point():
    block = [[9, 9], [1, 9], [1, 2]]
    made = example(Trajectory([7], [block] * 4), 3, "progressive", np.random.default_rng(0))
    assert made.prompt == [7]
    assert made.noisy == [[1, 2], [1, 9], [9, 9], [1, 2]]
    assert made.clean == [[1, 2]] * 4
    with pytest.raises(UsageError, match="at least 2 blocks"):
        example(Trajectory([7], [block]), 1, "progressive", np.random.default_rng(0))


def test_they_are_read_as_they_were_saved(collection, tmp_path):
    collection.save(tmp_path)
    again = Collection.load(tmp_path)
    assert again == collection
    assert again.iterations == collection.iterations > 0.5


def test_settling_by_hand():
    steady = [[9, 9, 9, 9], [1, 9, 3, 4], [1, 2, 3, 4]]  # one right at the start, two behind the first wrong one
    known = [[1, 2, 3, 4]]
    found = settling([Trajectory([7], [steady, known])])
    assert found == {"iterations": 1.0, "stationary_prefix": 2.5, "stationary_tokens": 1.0}
