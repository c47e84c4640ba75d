"""Compressing visual tokens: what is left, where it is, and how a way is chosen."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.decoding.blocks.compression import ELASTIC, Compressor, primitive

WIDTH, COUNT = 8, 16
OPTIONS = {"share": 0.25, "queries": 2, "heads": 2}


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    visual = torch.randn(3, COUNT, WIDTH, generator=generator)
    return visual, torch.arange(10.0, 10 + COUNT).expand(3, -1), torch.randn(3, WIDTH, generator=generator)


def make(name):
    torch.manual_seed(0)
    return primitive(name, WIDTH, **OPTIONS)


LEFT = {"none": 16, "drop": 0, "prune": 4, "pool": 4, "conv": 4, "resampler": 2}


@pytest.mark.parametrize(("name", "left"), LEFT.items())
def test_as_many_tokens_are_left_as_promised_and_within_the_picture(tokens, name, left):
    way = make(name)
    short, positions = way(*tokens)
    assert short.shape == (3, left, WIDTH)
    assert way.left(COUNT) == left
    assert bool(((positions >= 10) & (positions <= 25)).all())
    assert bool((positions.diff(dim=1) > 0).all())


def test_pruning_keeps_what_fits_the_question(tokens):
    visual, positions, question = tokens
    way = make("prune")
    with torch.no_grad():
        way.ask.weight.copy_(torch.eye(WIDTH))
        way.key.weight.copy_(torch.eye(WIDTH))
    wanted = (visual @ question[:, :, None]).squeeze(-1).topk(4).indices.sort().values
    _, kept = way(visual, positions, question)
    assert (kept - 10).long().tolist() == wanted.tolist()
    assert way(visual, positions, -question)[1].tolist() != kept.tolist()
    way(visual, positions, question)[0].sum().backward()
    assert float(way.ask.weight.grad.abs().sum()) > 0


def test_pooling_and_convolution_are_means_of_neighbours(tokens):
    visual, *_ = tokens
    grid = visual.view(3, 4, 4, WIDTH)
    short, places = make("pool")(*tokens)
    torch.testing.assert_close(short[:, 1], grid[:, :2, 2:].mean(dim=(1, 2)))
    assert places[0].tolist() == [12.5, 14.5, 20.5, 22.5]
    convolved, _ = make("conv")(*tokens)
    torch.testing.assert_close(convolved[:, 3], grid[:, 1:4, 1:4].mean(dim=(1, 2)))


def elastic():
    torch.manual_seed(0)
    return Compressor(ELASTIC, WIDTH, token_flops=1e5, **OPTIONS)


def test_the_router_takes_one_way_and_learns_of_the_others(tokens):
    compressor = elastic().train()
    generator = torch.Generator().manual_seed(1)
    chosen = [compressor(*tokens, generator) for _ in range(20)]
    assert len({way for one in chosen for way in one.choice.tolist()}) == 4
    one = chosen[0]
    for row, way in enumerate(one.choice.tolist()):
        alone, places = compressor.ways[way](*(part[row : row + 1] for part in tokens))
        count = compressor.ways[way].left(COUNT)
        torch.testing.assert_close(one.tokens[row, :count], alone[0])
        torch.testing.assert_close(one.positions[row, :count], places[0])
        assert one.present[row].tolist() == [place < count for place in range(4)]
    torch.testing.assert_close(one.price, compressor.prices(COUNT)[one.choice].mean())
    one.tokens.square().sum().backward()
    assert bool((compressor.router.weight.grad.abs().sum(dim=1) > 0).all())


def test_afterwards_the_best_way_is_taken_for_each_row_alone(tokens):
    compressor = elastic().eval()
    with torch.no_grad():
        compressor.router.weight.mul_(20)
        visual, _, question = tokens
        best = compressor.router(torch.cat([visual.mean(dim=1), question], dim=1)).argmax(dim=1)
        together = compressor(*tokens)
        assert together.choice.tolist() == best.tolist()
        for row in range(3):
            alone = compressor(*(part[row : row + 1] for part in tokens))
            count = int(alone.present.sum())
            torch.testing.assert_close(together.tokens[row, :count], alone.tokens[0, :count])
            assert int(together.present[row].sum()) == count


def test_the_price_moves_the_router_to_the_cheapest_way(tokens):
    compressor = elastic().train()
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(compressor.router.parameters(), 0.3)
    for _ in range(50):
        compressor(*tokens, generator).price.backward()
        optimizer.step()
        optimizer.zero_grad()
    compressor.eval()
    assert set(compressor(*tokens).choice.tolist()) == {int(compressor.prices(COUNT).argmin())}


def test_what_cannot_be_compressed(tokens):
    visual, positions, question = tokens
    with pytest.raises(UsageError, match="no such square"):
        make("pool")(visual[:, :9], positions[:, :9], question)
    with pytest.raises(UsageError, match="no way to compress"):
        make("pooling")
    with pytest.raises(ValueError, match="generator"):
        elastic().train()(*tokens)
