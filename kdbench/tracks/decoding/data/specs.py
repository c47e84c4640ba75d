"""What the data of a task may be: one model a kind, with every field bounded. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kdbench.spec import SpecModel
from kdbench.tracks.llm.data.specs import CAUSAL, HubInstructData, TextData


class ProblemData(SpecModel):
    """Problems with one right answer: fields that all kinds of them have."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    train: int = Field(20_000, ge=1)
    val: int = Field(48, ge=1)
    test: int = Field(48, ge=1)
    length: int = Field(192, ge=16)
    """Longest row in tokens; a longer one is an error."""
    seed: int = 0

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test"})


class ArithData(ProblemData):
    """Word problems of several steps with a worked rationale."""

    kind: Literal["arith"] = "arith"
    steps: tuple[int, int] = (1, 4)
    """Fewest and most operations."""
    largest: int = Field(99, ge=20, le=999)
    """Largest number that a problem or its rationale has."""

    @model_validator(mode="after")
    def _check(self) -> ArithData:
        low, high = self.steps
        if not 1 <= low <= high <= 4:
            raise ValueError(f"steps are 1 to 4, the fewest first, not {list(self.steps)}")
        return self


class FormatsData(ArithData):
    """Word problems whose answer is required in one of six output formats."""

    kind: Literal["formats"] = "formats"  # type: ignore[assignment]
    share: float = Field(0.5, gt=0, lt=1)
    """Share of the training prompts that ask for a format beside the task."""
    unasked: float = Field(0.5, ge=0, le=1)
    """Share of the other training prompts, which state the task alone, that are answered in a format all the same."""
    val: int = Field(96, ge=6)
    test: int = Field(96, ge=6)


class ListOpsData(ProblemData):
    """Operations on short lists of numbers."""

    kind: Literal["listops"] = "listops"
    items: tuple[int, int] = (3, 8)
    """Fewest and most numbers in a list."""
    largest: int = Field(9, ge=1, le=99)

    @model_validator(mode="after")
    def _check(self) -> ListOpsData:
        low, high = self.items
        if not 2 <= low <= high <= 16:
            raise ValueError(f"items are 2 to 16, the fewest first, not {list(self.items)}")
        return self


class DocsData(TextData):
    """Documentation and source code of CPython as text: the most uncertain tokens of the track."""

    kind: Literal["docs"] = "docs"  # type: ignore[assignment]
    domains: tuple[Literal["docs", "code"], ...] = ("docs", "code")  # type: ignore[assignment]
    val: int = Field(48, ge=1)
    test: int = Field(48, ge=1)


class ScenesData(ProblemData):
    """Questions about pictures of coloured shapes on a grid; the targets of other data read no pictures."""

    networks: ClassVar[tuple[str, ...]] = ("llava", *CAUSAL)
    kind: Literal["scenes"] = "scenes"
    counts: tuple[float, ...] = Field((4, 3, 2, 1), min_length=1, max_length=4)
    """How often a picture has one shape, two, three and four; the easy ones are what a model learns from first."""
    questions: dict[Literal["map", "colours", "forms", "row", "column", "count"], float] = {
        "map": 0.35,
        "colours": 0.15,
        "forms": 0.15,
        "row": 0.2,
        "column": 0.1,
        "count": 0.05,
    }
    """How often each kind of question is asked; one that is not named never is."""
    template: str = "{image}{question}\n"
    """The prompt; a pretrained model has one of its own, such as ``USER: {image}\\n{question} ASSISTANT:``."""
    train: int = Field(10_000, ge=1)
    length: int = Field(192, ge=16)
    """Longest row in tokens, those of the picture included; a longer one is an error."""

    @model_validator(mode="after")
    def _check(self) -> ScenesData:
        if min(self.counts) < 0 or sum(self.counts) <= 0:
            raise ValueError(f"counts are weights, and one of them is above 0, not {list(self.counts)}")
        if min(self.questions.values(), default=0) < 0 or sum(self.questions.values()) <= 0:
            raise ValueError(f"questions have weights, and one of them is above 0, not {self.questions}")
        if not self.template.count("{image}") == self.template.count("{question}") == 1:
            raise ValueError(f"a template has {{image}} and {{question}} once each, not {self.template!r}")
        return self


DecodingData = Annotated[
    ArithData | FormatsData | ListOpsData | DocsData | ScenesData | HubInstructData, Field(discriminator="kind")
]
