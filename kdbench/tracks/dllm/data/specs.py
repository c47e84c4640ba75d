"""What the data of a task are. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdbench.spec import SpecModel
from kdbench.tracks.llm.data.specs import HubData

Operation = Literal[
    *("copy", "reverse", "sort", "replace_index", "insert_index", "remove_index"),
    *("shuffle", "replace_random", "insert_random", "remove_random"),
]
Puzzle = Literal["latin", "sudoku"]
Sum = Literal["add", "steps"]
HEADER = 3
"""Symbols of a list problem before the list: operation, index, new item."""


class Generated(SpecModel):
    """Fields of all problems that are generated."""

    prompt: int = Field(16, ge=4)
    """Symbols of a prompt, padding and the closing symbol included (P)."""
    length: int = Field(12, ge=1)
    """Symbols of the canvas (L)."""
    train: int = Field(20000, ge=1)
    val: int = Field(100, ge=1)
    test: int = Field(200, ge=1)
    seed: int = 0

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test"})


class ListsData(Generated):
    """Operations on short lists, as in ParallelBench: one result, or several that are equally likely."""

    kind: Literal["lists"] = "lists"
    operations: tuple[Operation, ...] = Field(min_length=1, max_length=10)
    items: tuple[int, int] = (3, 6)
    """Items of a list, least and most, drawn without replacement from 32."""

    @model_validator(mode="after")
    def _fits(self) -> ListsData:
        least, most = self.items
        if not 2 <= least <= most <= 10:
            raise ValueError(f"items {list(self.items)}: 2 <= least <= most <= 10 (an index is one digit)")
        if HEADER + most + 1 > self.prompt:
            raise ValueError(f"prompts of {most} items take {HEADER + most + 1} symbols, more than {self.prompt}")
        if most + 2 > self.length:
            raise ValueError(f"{most} items, one more and the end take {most + 2} symbols, more than {self.length}")
        return self


class SquaresData(Generated):
    """Squares of four by four with blanks: Latin ones with several solutions, sudokus with one."""

    kind: Literal["squares"] = "squares"
    puzzles: tuple[Puzzle, ...] = ("latin", "sudoku")
    blanks: tuple[int, int] = (6, 10)
    """Cells that are left to fill, least and most."""
    prompt: int = Field(18, ge=18)
    length: int = Field(16, ge=16)

    @model_validator(mode="after")
    def _fits(self) -> SquaresData:
        if not 1 <= self.blanks[0] <= self.blanks[1] <= 12:
            raise ValueError(f"blanks {list(self.blanks)}: 1 <= least <= most <= 12")
        return self


class ArithData(Generated):
    """Sums: of two numbers, or a chain of additions and subtractions that is written out step by step."""

    kind: Literal["arith"] = "arith"
    sums: tuple[Sum, ...] = ("steps",)
    digits: int = Field(3, ge=1, le=5)
    """``add``: of both numbers."""
    steps: tuple[int, int] = (2, 4)
    """``steps``: operations, least and most."""
    values: int = Field(9, ge=1, le=99)
    """``steps``: all results are between 0 and this, and written with as many digits as it has."""
    largest: int = Field(9, ge=1, le=99)
    """``steps``: largest number that is added or taken away."""

    @model_validator(mode="after")
    def _fits(self) -> ArithData:
        if not 1 <= self.steps[0] <= self.steps[1]:
            raise ValueError(f"steps {list(self.steps)}: 1 <= least <= most")
        number, value = len(str(self.largest)), len(str(self.values))
        chain = (value + self.steps[1] * (1 + number), self.steps[1] * (2 * value + number + 3))
        pair = (2 * self.digits + 1, self.digits + 1)
        asked = [size for name, size in (("steps", chain), ("add", pair)) if name in self.sums]
        if max(question for question, _ in asked) + 2 > self.prompt:
            raise ValueError(f"the longest question does not fit a prompt of {self.prompt} symbols")
        if max(response for _, response in asked) + 1 > self.length:
            raise ValueError(f"the longest response does not fit a canvas of {self.length} symbols")
        return self


class HubProblemsData(HubData):
    """Prompts and responses of a Hugging Face data set or of local files."""

    kind: Literal["hf-problems"] = "hf-problems"
    prompt_column: str = "question"
    response_column: str = "answer"
    template: Literal["chat", "plain"] = "chat"
    """``chat``: through the chat template of the tokenizer; ``plain``: the prompt as it stands and a new line."""
    prompt: int = Field(256, ge=4)
    """Tokens of the prompt window; items with longer prompts are left out and counted."""
    length: int = Field(256, ge=4)
    """Tokens of the canvas; items with longer responses are left out of the training data, and counted."""
    val: int = Field(100, ge=1)
    test: int = Field(500, ge=1)


DllmData = Annotated[ListsData | SquaresData | ArithData | HubProblemsData, Field(discriminator="kind")]
