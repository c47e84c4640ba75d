"""What functions hold is seen, and what cannot be seen is not taken for unchanged."""

from __future__ import annotations

import array
import io
import threading
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from torch import nn

from kdbench.training.inspection import Inspection, content_digest, reaches


@dataclass
class Batch:
    x: torch.Tensor
    names: list[str]


def test_equal_contents_have_equal_digests():
    one, other = (Batch(torch.ones(2, 3), ["a", "b"]) for _ in range(2))
    assert content_digest(one) == content_digest(other)
    assert content_digest([one, 1.0]) == content_digest([other, 1.0])
    for different in (Batch(torch.ones(3, 2), ["a", "b"]), Batch(torch.ones(2, 3), ["a", "c"]), [one]):
        assert content_digest(one) != content_digest(different)
    assert content_digest(torch.tensor([1.0, 2.0])) != content_digest(torch.tensor([2.0, 1.0]))
    assert content_digest(torch.ones(2, dtype=torch.bfloat16)) != content_digest(torch.zeros(2, dtype=torch.bfloat16))


def sampling(model):
    while True:
        yield model(torch.ones(1, 2))


class Sampler:
    def __init__(self, model):
        self.inner = {"models": [model]}

    def __iter__(self):
        return iter(())


def test_a_loader_that_holds_the_network_is_found():
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for loader in (sampling(model), Sampler(model), map(model, [1]), zip([1], sampling(model), strict=False)):
        assert reaches(loader, [model])
    started = sampling(model)
    next(started)
    assert reaches(started, [model])
    for loader in (sampling(other), Sampler(other), [torch.ones(2)] * 3, iter([1])):
        assert not reaches(loader, [model])


@pytest.mark.parametrize("thing", [array.array("d"), bytearray(b"a"), io.BytesIO(), threading.Lock(), iter([1])])
def test_what_does_not_show_its_changes_is_named(thing):
    box = {"thing": thing}
    found = Inspection({"loss": lambda: box}).changed()
    assert found is not None
    assert "`box['thing']` in loss" in found


def test_every_way_to_hold_something_is_followed():
    class Call:
        def __init__(self, rows):
            self.rows = rows

        def __call__(self):
            return self.rows

        def method(self):
            return self.rows

    def with_default(rows):
        def function(rows=rows):
            return rows

        return function

    def cached(rows):
        @cache
        def function():
            return rows

        return function

    ways = [
        lambda rows: lambda: rows,
        lambda rows: partial(len, rows),
        lambda rows: Call(rows),
        lambda rows: Call(rows).method,
        lambda rows: rows.append,
        lambda rows: lambda: lambda: rows,
        with_default,
        cached,
    ]
    for way in ways:
        rows: list[int] = []
        inspection = Inspection({"loss": way(rows)})
        assert inspection.changed() is None
        rows.append(1)
        assert inspection.changed() is not None
        rows.clear()
        assert inspection.changed() is None, "as it was is as good as unchanged"


def test_what_is_put_back_by_others_may_change():
    box, network = [1], nn.Linear(1, 1)
    inspection = Inspection({"loss": lambda: (box, network)}, networks=[network], kept=[box])
    box.append(2)
    nn.init.zeros_(network.weight)
    assert inspection.changed() is None
    network.note = 1
    assert "note" in inspection.changed()


def test_a_structure_that_refers_to_itself_ends():
    rows: list[object] = []
    rows.append(rows)
    assert Inspection({"loss": lambda: rows}).changed() is None
