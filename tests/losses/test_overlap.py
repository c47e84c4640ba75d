"""Divergences and their slopes by the overlap of two distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.losses.overlap import by_overlap, measures
from kdbench.losses.transport import l1_cost, transport_cost


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transport(q: Tensor, p: Tensor) -> Tensor:
    return transport_cost(l1_cost(q, p))


STUDENT, TEACHER = logits(24, 6), logits(24, 6, seed=1)


def test_the_slope_stays_bounded_where_forward_kl_blows_up() -> None:
    tables = []
    for small in (1e-2, 1e-4, 1e-8):
        p = torch.tensor([[1 - small, small], [small, 1 - small]], dtype=torch.float64)
        tables.append(measures(p.log(), p.flip(1)[:1].expand(2, 2).log(), transport))
    fkl, transported = ([table[name]["slope"] for table in tables] for name in ("fkl", "sinkhorn"))
    assert fkl[2] > 1e3 * fkl[1] > 1e4 * fkl[0] / 10
    assert all(0 < slope < 10 for slope in transported)
    assert all(table["sinkhorn"]["value"] <= 2 for table in tables)


def test_the_table_goes_from_little_overlap_to_much() -> None:
    table = by_overlap(STUDENT, TEACHER, transport)
    overlaps = [row["overlap"] for row in table]
    assert overlaps == sorted(overlaps)
    assert sum(row["rows"] for row in table) == 24
    assert table[0]["fkl"]["value"] > table[-1]["fkl"]["value"]
