"""Shortest ways on a grid over an arena of discs, for scripted experts.

The grid is connected to its eight neighbours; the search is Dijkstra's (scipy), which finds the same ways as A*.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

CELL = 0.2
"""Metres."""
SPACING = 0.05
"""Metres between the points of a way."""


@cache
def _edges(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ends and lengths of the edges of a grid of ``side`` x ``side`` cells."""
    index = np.arange(side * side).reshape(side, side)
    starts, ends, lengths = [], [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = index[: side - down, max(0, -right) : side - max(0, right)]
        there = index[down:, max(0, right) : side - max(0, -right)]
        starts.append(here.ravel())
        ends.append(there.ravel())
        lengths.append(np.full(here.size, CELL * np.hypot(down, right)))
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(lengths)


def centres(size: float) -> np.ndarray:
    """(C, 2) centres of the cells of an arena of ``size`` x ``size`` metres."""
    axis = (np.arange(round(size / CELL)) + 0.5) * CELL
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def way(start: np.ndarray, goal: np.ndarray, free: np.ndarray, size: float) -> np.ndarray | None:
    """(P, 2) points from ``start`` to ``goal``, ``SPACING`` apart, over ``free`` (C,) cells; None where there is none.

    The cells of both ends count as free.
    """
    cells = centres(size)
    first, last = (int(np.square(cells - point).sum(1).argmin()) for point in (start, goal))
    free = free.copy()
    free[[first, last]] = True
    a, b, lengths = _edges(round(size / CELL))
    open_ = free[a] & free[b]
    graph = csr_matrix((lengths[open_], (a[open_], b[open_])), shape=(len(cells), len(cells)))
    distance, before = dijkstra(graph, directed=False, indices=last, return_predecessors=True)
    if not np.isfinite(distance[first]):
        return None
    nodes = [first]
    while nodes[-1] != last:
        nodes.append(int(before[nodes[-1]]))
    return resampled(np.concatenate([start[None], cells[nodes[1:-1]], goal[None]]))


def resampled(points: np.ndarray) -> np.ndarray:
    """A polyline (P, 2) with points ``SPACING`` apart, smoothed over about a cell; both ends stay."""
    lengths = np.concatenate([[0.0], np.hypot(*np.diff(points, axis=0).T).cumsum()])
    at = np.linspace(0, lengths[-1], max(2, int(lengths[-1] / SPACING) + 1))
    line = np.stack([np.interp(at, lengths, points[:, axis]) for axis in range(2)], -1)
    width = 9
    if len(line) <= width:
        return line
    padded = np.concatenate([line[:1].repeat(width // 2, 0), line, line[-1:].repeat(width // 2, 0)])
    smooth = np.stack([np.convolve(padded[:, axis], np.full(width, 1 / width), "valid") for axis in range(2)], -1)
    smooth[0], smooth[-1] = line[0], line[-1]
    return smooth
