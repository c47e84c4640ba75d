"""The bound on entropy: what it commits, and that it is a bound in nats."""

from __future__ import annotations

import math

import torch

from kdbench.tracks.dllm.decoding import decode
from kdbench.tracks.dllm.policies.base import DecodingPolicy
from kdbench.tracks.dllm.policies.basic import All, Threshold, TopK
from kdbench.tracks.dllm.policies.certain import Certain
from tests.tracks.dllm.conftest import VOCABULARY

OPTIONS = {"length": 8, "block": 4}


def test_it_is_a_threshold_on_normalised_entropy_at_one_size_of_the_vocabulary(net, prompts):
    nats = 0.7
    same = Threshold(1 - nats / math.log(VOCABULARY), "entropy")
    mine = decode(net, prompts, Certain(nats), **OPTIONS)
    assert torch.equal(mine.steps, decode(net, prompts, same, **OPTIONS).steps)
    assert 2 < mine.forwards.double().mean() < 8


def test_its_ends_are_one_token_per_step_by_entropy_and_all_at_once(net, prompts):
    least = decode(net, prompts, Certain(1e-12), **OPTIONS)
    assert torch.equal(least.steps, decode(net, prompts, TopK(1, "entropy"), **OPTIONS).steps)
    most = decode(net, prompts, Certain(math.log(VOCABULARY)), **OPTIONS)
    assert torch.equal(most.steps, decode(net, prompts, All(), **OPTIONS).steps)


def test_the_frontier_begins_with_the_most_careful_bound(tmp_path):
    policy = Certain(0.3, (1.0, 0.1))
    assert [point.nats for point in policy.sweep()] == [0.1, 0.3, 1.0]
    policy.save(tmp_path)
    assert DecodingPolicy.of_kind("certain").load(tmp_path).nats == 0.3
