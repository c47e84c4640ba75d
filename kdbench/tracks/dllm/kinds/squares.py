"""Latin squares and sudokus of four by four with blanks; the canvas has all sixteen cells."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations

import numpy as np

from kdbench.tracks.decoding.data.problems import Problem
from kdbench.tracks.dllm.data import vocabulary
from kdbench.tracks.dllm.kinds.base import Kind

SIDE = 4
BLANK = vocabulary.ALPHABET[vocabulary.QUERY]
DIGITS = "1234"


def is_square(cells: str, boxes: bool) -> bool:
    """Whether sixteen cells, row by row, have each digit once in every row and column (and 2 x 2 box).

    >>> is_square("1234" "3412" "2143" "4321", boxes=True), is_square("1234" "2341" "3412" "4123", boxes=True)
    (True, False)
    """
    if len(cells) != SIDE * SIDE:
        return False
    rows = [cells[SIDE * r : SIDE * r + SIDE] for r in range(SIDE)]
    groups = [*rows, *("".join(row[c] for row in rows) for c in range(SIDE))]
    if boxes:
        groups += [rows[r][c : c + 2] + rows[r + 1][c : c + 2] for r in (0, 2) for c in (0, 2)]
    return all(sorted(group) == list(DIGITS) for group in groups)


def _squares() -> Iterator[str]:
    rows = ["".join(row) for row in permutations(DIGITS)]

    def below(above: list[str]) -> Iterator[str]:
        if len(above) == SIDE:
            yield "".join(above)
            return
        for row in rows:
            if all(row[c] != other[c] for other in above for c in range(SIDE)):
                yield from below([*above, row])

    yield from below([])


@lru_cache(maxsize=2)
def squares(boxes: bool) -> tuple[str, ...]:
    """All Latin squares (576), or all sudokus (288)."""
    return tuple(cells for cells in _squares() if not boxes or is_square(cells, boxes=True))


@lru_cache(maxsize=2)
def _table(boxes: bool) -> np.ndarray:
    return np.array([[ord(cell) for cell in cells] for cells in squares(boxes)])


def solutions(clues: str, boxes: bool) -> list[str]:
    """All squares that agree with the clues."""
    given = np.array([ord(digit) for digit in clues])
    agrees = ((_table(boxes) == given) | (given == ord(BLANK))).all(axis=1)
    return [squares(boxes)[number] for number in np.flatnonzero(agrees)]


class Squares(Kind):
    """``latin``: squares whose clues leave several solutions; ``sudoku``: with boxes and one solution."""

    single = frozenset({"sudoku"})

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.data.puzzles)

    def problem(self, rng: np.random.Generator) -> Problem:
        puzzle = self.names[rng.integers(len(self.names))]
        boxes = puzzle == "sudoku"
        while True:
            every = squares(boxes)
            cells = every[rng.integers(len(every))]
            count = int(rng.integers(self.data.blanks[0], self.data.blanks[1] + 1))
            blank = set(rng.choice(SIDE * SIDE, count, replace=False).tolist())
            clues = "".join(BLANK if place in blank else digit for place, digit in enumerate(cells))
            if (len(solutions(clues, boxes)) == 1) == boxes:
                name = vocabulary.ALPHABET[vocabulary.OPS + self.names.index(puzzle)]
                return Problem(name + clues, cells, cells, puzzle)

    def outcomes(self, problem: Problem) -> list[str]:
        return solutions(problem.prompt[1:], problem.level == "sudoku")

    def solves(self, problem: Problem, response: str) -> bool:
        """Any square that has the clues is right."""
        clues = problem.prompt[1:]
        agrees = all(clue in (BLANK, cell) for clue, cell in zip(clues, response, strict=False))
        return is_square(response, problem.level == "sudoku") and agrees
