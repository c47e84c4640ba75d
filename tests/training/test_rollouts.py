"""Sampling from the model of the moment, and its mix with data."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.budget import Budget
from kdbench.training.reversal import reverse_gradient
from kdbench.training.rollouts import AnsweredBatches, MixedBatches, answering, sampler


class FakeTask:
    """Records what it is asked for; a rollout is the weight of the model and the numbers that it drew."""

    def __init__(self) -> None:
        self.budget = Budget({})

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(sum(purpose.encode()))

    def prompts(self, split, n, generator):
        return split, torch.randint(1000, (n,), generator=generator).tolist()

    def rollout(self, model, prompts, *, max_new, temperature, top_p, top_k, generator):
        return SimpleNamespace(
            weight=model.weight.item(),
            prompts=prompts,
            options=(max_new, temperature, top_p, top_k),
            noise=torch.rand((), generator=generator).item(),
            attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]]),
        )


def model(weight: float = 1.0) -> nn.Module:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, weight)
    return network


def test_samples_come_from_the_weights_of_the_moment():
    network = model()
    sample = sampler(FakeTask(), network, max_new=24, temperature=0.9)
    first = sample(3)
    nn.init.constant_(network.weight, 2.0)
    second = sample(3)
    assert (first.weight, second.weight) == (1.0, 2.0)
    assert first.options == (24, 0.9, 1.0, 0)
    assert first.prompts != second.prompts
    assert first.noise != second.noise


def test_the_same_job_draws_the_same_prompts_again():
    first, again = (sampler(FakeTask(), model(), max_new=4) for _ in range(2))
    assert first(3).prompts == again(3).prompts
    other = sampler(FakeTask(), model(), max_new=4, purpose="teacher")
    assert other(3).prompts != first(3).prompts


def test_sampling_is_metered_two_flops_per_parameter_and_token():
    task = FakeTask()
    sampler(task, model(), max_new=4)(2)
    assert task.budget.report() == {"flops": 2 * 1 * 4}


class Numbered(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.index)


def test_every_batch_of_data_gets_new_answers_to_its_own_prompts():
    task = FakeTask()
    task.prompts_of = lambda split, rows: [f"{split} {row}" for row in rows]
    network = model()
    source = [Numbered(split="train", index=[3, 1]), Numbered(split="train", index=[2])]
    batches = AnsweredBatches(task, source, answering(task, network, max_new=4, top_k=128))
    first, second = batches
    assert [len(each) for each in (first, second)] == [2, 1]
    assert first.data is source[0]
    assert first.own.prompts == ["train 3", "train 1"]
    assert first.own.options == (4, 1.0, 1.0, 128)
    nn.init.constant_(network.weight, 2.0)
    again = next(iter(batches))
    assert (first.own.weight, again.own.weight) == (1.0, 2.0)
    assert len({first.own.noise, second.own.noise, again.own.noise}) == 3


def mixed(chance, steps: int = 200, seed: int = 0) -> list[str]:
    batches = MixedBatches(["data"] * steps, lambda n: "own", chance, np.random.default_rng(seed))
    return list(batches)


def test_the_ends_are_only_data_and_only_samples():
    assert set(mixed(lambda step: 0.0)) == {"data"}
    assert set(mixed(lambda step: 1.0)) == {"own"}


def test_the_share_is_the_chance_and_may_change_with_the_step():
    assert mixed(lambda step: 0.3, 1000).count("own") == pytest.approx(300, abs=50)
    rising = mixed(lambda step: step / 1000, 1000)
    assert rising[:300].count("own") < rising[-300:].count("own") / 2


def test_samples_are_as_many_as_the_batch_that_they_replace():
    sizes = []
    list(MixedBatches(["four", "seven77"], sizes.append, lambda step: 1.0, np.random.default_rng(0)))
    assert sizes == [4, 7]


def test_steps_go_on_from_epoch_to_epoch():
    seen = []
    batches = MixedBatches(["a", "b"], lambda n: None, lambda step: seen.append(step) or 0.0, np.random.default_rng(0))
    list(batches)
    list(batches)
    assert seen == [0, 1, 2, 3]


def test_reversal_is_the_identity_forward_and_flips_and_scales_the_gradient():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x, 0.3)
    assert torch.equal(y, x)
    (y * torch.tensor([2.0, 5.0])).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([-0.6, -1.5]))
