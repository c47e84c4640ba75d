"""Pictures of coloured shapes on a grid, and questions about them with one right answer each.

A scene has one to four shapes in the cells of a 4 x 4 grid. Answers draw a map of what is asked for, row by row. That
is what targets of this size learn to read off a picture in minutes; sentences on named cells ("a gold ring at b3") stay
guesses for much longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from kdbench.tracks.decoding.data import problems
from kdbench.tracks.decoding.data.problems import Problem
from kdbench.tracks.decoding.data.specs import ScenesData

SIZE = 48
"""Pixels of a side."""
GRID = 4
CELL = SIZE // GRID
COLUMNS = "abcd"
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "gold": (235, 190, 40),
    "pink": (240, 130, 190),
    "white": (235, 235, 235),
}
CODES = {"red": "r", "green": "g", "blue": "b", "gold": "o", "pink": "p", "white": "w"}
SHAPES = ("disc", "square", "cross", "ring")
QUESTIONS = {
    "map": "What do you see?",
    "colours": "Which colours are there?",
    "forms": "Which forms are there?",
    "row": "What is in row {}?",
    "column": "What is in column {}?",
    "count": "How many shapes are there?",
}


@dataclass(frozen=True)
class Shape:
    """One shape and where it is."""

    colour: str
    form: str
    column: int
    """0 to 3, from the left."""
    row: int
    """0 to 3, from the top."""

    @property
    def code(self) -> str:
        """Colour and form in one character each.

        >>> Shape("gold", "ring", 1, 2).code
        'or'
        """
        return CODES[self.colour] + self.form[0]


@dataclass(frozen=True)
class Scene(Problem):
    """A question about a picture, and what the picture shows."""

    shapes: tuple[Shape, ...] = ()
    """In reading order."""
    paint: int = 0
    """Seed of the background and of the shades."""

    @property
    def content(self) -> str:
        """What the picture shows, whatever is asked."""
        return "".join(cells(self.shapes).flat)

    def check(self, response: str) -> bool:
        """Whether ``response`` is the right answer, word for word."""
        return response.strip() == self.answer

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Scene:
        return cls(**{**row, "shapes": tuple(Shape(**shape) for shape in row["shapes"])})


def arrangement(rng: np.random.Generator, counts: Sequence[float]) -> tuple[Shape, ...]:
    """Different shapes in different cells, in reading order; ``counts`` are weights of one shape, of two, ..."""
    count = 1 + int(rng.choice(len(counts), p=np.divide(counts, sum(counts))))
    cells = sorted(rng.choice(GRID * GRID, size=count, replace=False).tolist())
    looks = rng.choice(len(COLOURS) * len(SHAPES), size=count, replace=False).tolist()
    colours = list(COLOURS)
    return tuple(
        Shape(colours[look // len(SHAPES)], SHAPES[look % len(SHAPES)], cell % GRID, cell // GRID)
        for cell, look in zip(cells, looks, strict=True)
    )


def cells(shapes: Sequence[Shape]) -> np.ndarray:
    """(4, 4) strings: the code of the shape in each cell, ``..`` where there is none."""
    found = np.full((GRID, GRID), "..")
    for shape in shapes:
        found[shape.row, shape.column] = shape.code
    return found


def ask(rng: np.random.Generator, kind: str, shapes: Sequence[Shape]) -> tuple[str, str]:
    """Question and answer of one of :data:`QUESTIONS` about the shapes of a scene."""
    question, found = QUESTIONS[kind], cells(shapes)
    if kind == "count":
        return question, f"There {'is' if len(shapes) == 1 else 'are'} {len(shapes)}."
    if kind == "map":
        return question, "I see\n" + "\n".join(" ".join(row) for row in found)
    if kind in ("colours", "forms"):
        part = ("colours", "forms").index(kind)
        return question, "\n".join("".join(code[part] for code in row) for row in found)
    # half of these ask for a place that has something
    place = shapes[rng.integers(len(shapes))]
    column, row = (place.column, place.row) if rng.random() < 0.5 else rng.integers(GRID, size=2).tolist()
    name, line = (str(row + 1), found[row]) if kind == "row" else (COLUMNS[column], found[:, column])
    return question.format(name), f"In {kind} {name}: {' '.join(line)}"


def scene(rng: np.random.Generator, data: ScenesData, counts: Sequence[float]) -> Scene:
    """One question about one picture; ``counts`` are weights of one shape, of two, ..."""
    shapes = arrangement(rng, counts)
    weights = np.array([data.questions.get(name, 0.0) for name in QUESTIONS])
    kind = list(QUESTIONS)[rng.choice(len(QUESTIONS), p=weights / weights.sum())]
    question, answer = ask(rng, kind, shapes)
    prompt = data.template.replace("{question}", question)
    return Scene(prompt, answer, answer, kind, shapes, int(rng.integers(2**31)))


def make_scenes(data: ScenesData, split: str, count: int) -> list[Scene]:
    """``count`` questions of a split; the pictures of the splits are disjoint (see :func:`problems.generate`)."""
    return problems.generate(partial(scene, data=data, counts=data.counts), split, count, data.seed)


def make_crowds(data: ScenesData, count: int) -> list[Scene]:
    """``count`` questions about pictures of the training split with one to sixteen shapes.

    Where most cells are empty, dots are a good guess; whoever learns to answer these learns to look.
    """
    make = partial(scene, data=data, counts=[1] * GRID * GRID)
    return problems.generate(make, "train", count, data.seed + 1)


# --- pixels -----------------------------------------------------------------------------------------------------------


@cache
def outline(form: str) -> np.ndarray:
    """Where a cell is covered by a shape, (12, 12) bool."""
    y, x = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
    radius = np.hypot(x, y)
    inner = CELL / 2 - 1
    if form == "disc":
        return radius <= inner
    if form == "ring":
        return (radius <= inner) & (radius >= inner - 2)
    if form == "square":
        return (abs(x) <= inner - 1) & (abs(y) <= inner - 1)
    return ((abs(x) <= 1) | (abs(y) <= 1)) & (abs(x) <= inner) & (abs(y) <= inner)


def render(item: Scene) -> np.ndarray:
    """The picture of a scene: (3, 48, 48) uint8, the same for the same scene on every machine."""
    rng = np.random.default_rng([item.paint, 0x5CE])
    canvas = np.full((3, SIZE, SIZE), rng.integers(10, 70), dtype=np.int64)
    for shape in item.shapes:
        colour = np.array(COLOURS[shape.colour]) + rng.integers(-15, 16, size=3)
        top, left = shape.row * CELL, shape.column * CELL
        cell = canvas[:, top : top + CELL, left : left + CELL]
        cell[:, outline(shape.form)] = colour[:, None]
    canvas += rng.integers(-6, 7, size=canvas.shape, dtype=np.int8)
    return canvas.clip(0, 255).astype(np.uint8)
