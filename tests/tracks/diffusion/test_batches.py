"""Loaders give fresh draws, and go on where they were."""

from __future__ import annotations

from itertools import islice

import torch

from kdbench.tracks.diffusion.batches import EPOCH, Draws, Reals, Turns, drawer
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.training.loaders import Order, cycle


def conditions(count: int, generator: torch.Generator) -> Condition:
    return Condition.of_tokens(torch.randint(1, 5, (count,), generator=generator))


def made(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return drawer((2,), conditions, generator, torch.device("cpu")), generator


def reals(generator: torch.Generator, seen: list[int]) -> Reals:
    x = torch.arange(10.0)[:, None].expand(10, 2)
    return Reals(x, Condition.of_tokens(torch.arange(10)), Order(10, 4, generator), seen.append)


def test_every_update_has_its_own_noise():
    make, _ = made()
    turn = next(iter(Turns(make, 8, 3, None)))
    draws = [*turn.critics, turn.draw]
    assert len(draws) == 4
    assert len({draw.noise[0, 0].item() for draw in draws}) == 4
    assert len(turn) == 32
    assert turn.reals == []


def test_real_batches_come_one_for_each_update_and_are_metered():
    make, generator = made()
    seen: list[int] = []
    turn = next(iter(Turns(make, 4, 2, reals(generator, seen))))
    assert [len(batch) for batch in turn.reals] == [4, 4, 2]
    assert seen == [4, 4, 2]
    assert sorted(torch.cat([batch.index for batch in turn.reals]).tolist()) == list(range(10))
    assert all(torch.equal(batch.cond.tokens[:, 0], batch.index) for batch in turn.reals)


def test_turns_go_on_where_they_were():
    def turns():
        make, generator = made()
        data = torch.Generator().manual_seed(5)
        return cycle(Turns(make, 4, 1, reals(data, []))), (generator, data)

    whole, _ = turns()
    wanted = list(islice(whole, EPOCH + 5))[-1]
    first, issued = turns()
    for _ in range(EPOCH + 2):
        next(first)
    state, states = first.state_dict(), [one.get_state() for one in issued]
    second, others = turns()
    second.load_state_dict(state)
    for one, kept in zip(others, states, strict=True):
        one.set_state(kept)
    found = list(islice(second, 3))[-1]
    assert torch.equal(found.draw.noise, wanted.draw.noise)
    assert torch.equal(found.reals[-1].index, wanted.reals[-1].index)


def test_draws_have_epochs():
    make, _ = made()
    assert sum(1 for _ in Draws(make, 2)) == EPOCH
