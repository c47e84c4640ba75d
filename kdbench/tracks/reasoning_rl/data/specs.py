"""What the data of a task may be, with every field bounded. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kdbench.spec import SpecModel
from kdbench.tracks.llm.data.specs import CAUSAL, HubInstructData

Family = Literal["addcarry", "modchain", "sortrev", "hops", "word", "rules", "prog"]
DOMAINS: dict[str, tuple[Family, ...]] = {
    "arith": ("addcarry", "modchain", "word"),
    "logic": ("sortrev", "hops", "rules", "prog"),
}
"""Families by domain: what experts are trained on and mixed batches are routed by."""


def domain_of(family: str) -> str:
    """The domain that a family belongs to; another name is a domain of its own."""
    return next((domain for domain, families in DOMAINS.items() if family in families), family)


class MiniReasonData(SpecModel):
    """Procedural problems with worked solutions and a verifier."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    kind: Literal["minireason"] = "minireason"
    families: tuple[Family, ...] = ("addcarry", "modchain", "sortrev")
    """Families that methods train on and the headline is measured on."""
    ood_family: Family | None = "hops"
    """A family that the student has learned before and that no method trains on."""
    retain: Family | None = "word"
    """A family of the pre-training alone: what is forgotten later."""
    levels: tuple[int, int] = (2, 4)
    """Least and greatest difficulty of training, validation and test problems."""
    ood_levels: tuple[int, int] = (5, 6)
    """Difficulty of the longer problems that no method trains on."""
    train: int = Field(6000, ge=1)
    val: int = Field(48, ge=1)
    test: int = Field(120, ge=1)
    ood: int = Field(48, ge=1)
    """Problems of each of the three splits beside the test data."""
    length: int = Field(160, ge=16)
    """Longest row in tokens; a longer one is an error."""
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> MiniReasonData:
        for name in ("levels", "ood_levels"):
            low, high = getattr(self, name)
            if not 2 <= low <= high <= 7:
                raise ValueError(f"{name} are 2 to 7, the least first, not {[low, high]}")
        if not self.families or len(set(self.families)) < len(self.families):
            raise ValueError(f"families are at least one and none twice, not {list(self.families)}")
        for name in ("ood_family", "retain"):
            if getattr(self, name) in self.families:
                raise ValueError(f"{name} {getattr(self, name)!r} is among the families that are trained on")
        return self

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"train", "val", "test", "ood", "length"})

    @property
    def everything(self) -> tuple[Family, ...]:
        """All families that there are, those trained on first."""
        beside = [family for family in (self.ood_family, self.retain) if family is not None]
        return (*self.families, *dict.fromkeys(beside))


class HubMathData(HubInstructData):
    """Questions with an answer that can be compared, of a Hugging Face data set or of local files."""

    kind: Literal["hf-math"] = "hf-math"  # type: ignore[assignment]
    prompt: str = "question"
    """Column of the question."""
    response: str = "solution"
    """Column of the worked solution, which ends in the answer (``#### 7`` or ``\\\\boxed{7}``) where there is no column
    for it."""
    answer: str | None = None
    """Column of the answer alone."""
    source: str | None = None
    """Column of the domain that a question comes from; null: all are of one."""
    test: int = Field(500, ge=1)


ReasoningData = Annotated[MiniReasonData | HubMathData, Field(discriminator="kind")]
