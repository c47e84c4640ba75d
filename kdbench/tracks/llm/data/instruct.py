"""Instruction data with verifiable answers: items, splits, distractors, and the template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdbench.errors import JobError
from kdbench.tracks.llm.data import distractors
from kdbench.tracks.llm.data.families import SAMPLERS, Draft, check, lookup
from kdbench.tracks.llm.data.knowledge import Knowledge
from kdbench.tracks.llm.data.specs import HELD_OUT, DistractorsData, InstructData

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """One instruction with everything that is known about it."""

    instruction: str
    """With the distractor, where there is one."""
    response: str
    """The answer that training shows: drawn from ``answers``."""
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]
    family: str
    level: int
    distractor: tuple[int, int] | None = None
    """Character range ``[start, end)`` of the irrelevant sentence within ``instruction``."""

    @property
    def prompt(self) -> str:
        return template(self.instruction)

    @property
    def text(self) -> str:
        return self.prompt + self.response

    def distractor_in_prompt(self) -> tuple[int, int] | None:
        """The character range within :attr:`prompt`."""
        if self.distractor is None:
            return None
        offset = self.prompt.index(self.instruction)
        return self.distractor[0] + offset, self.distractor[1] + offset

    def check(self, response: str) -> bool:
        """Whether ``response`` answers the instruction; exact (see :func:`families.check`)."""
        return check(self.family, response, self.answers)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Item:
        span = row["distractor"]
        return cls(
            **{**row, "answers": tuple(row["answers"]), "probabilities": tuple(row["probabilities"])}
            | {"distractor": tuple(span) if span else None}
        )


def template(instruction: str) -> str:
    """The prompt: everything before the response."""
    return f"### Instruction:\n{instruction}\n\n### Response:\n"


def split_of(instruction: str) -> str:
    """Split that an instruction belongs to, from its text alone: 80/10/10 %, none in two splits."""
    bucket = hashlib.sha256(instruction.encode()).digest()[0] % 10
    return "val" if bucket == 8 else "test" if bucket == 9 else "train"


def draw(rng: np.random.Generator, family: str, level: int, knowledge: Knowledge, split: str) -> Draft:
    """One draft of a family that belongs to ``split``. Raises ``JobError`` where the family has none left to offer."""
    if family == "lookup":
        return lookup(rng, knowledge, split)
    for _ in range(1000):
        draft = SAMPLERS[family](rng, level)
        if split_of(draft.instruction) == split:
            return draft
    raise JobError(f"the family {family!r} gives no {split} instruction at difficulty {level}")


def generate(data: InstructData, split: str, count: int, families: Sequence[str] | None = None) -> list[Item]:
    """``count`` items of a split: the same for the same data, whatever other splits are asked for."""
    knowledge = Knowledge.make(data.persons, data.seed)
    names = tuple(families if families is not None else data.families)
    weights = np.array([data.weights.get(name, 1.0) for name in names], dtype=float)
    if weights.sum() <= 0:
        raise JobError("the weights of the instruction families are all zero")
    rng = np.random.default_rng([data.seed, SPLITS.index(split), len(names), 0x175])
    chosen = rng.choice(len(names), size=count, p=weights / weights.sum())
    low, high = data.difficulty
    items = []
    for index in chosen:
        family, level = names[index], int(rng.integers(low, high + 1))
        draft = draw(rng, family, level, knowledge, split)
        response = draft.answers[0]
        if len(draft.answers) > 1:
            response = draft.answers[int(rng.choice(len(draft.answers), p=draft.probabilities))]
        instruction, span = draft.instruction, None
        if rng.random() < data.distractors:
            instruction, span = distract(rng, data, draft.instruction, family, level, knowledge)
        items.append(Item(instruction, response, draft.answers, draft.probabilities, family, level, span))
    return items


def distract(
    rng: np.random.Generator, data: InstructData, instruction: str, family: str, level: int, knowledge: Knowledge
) -> tuple[str, tuple[int, int]]:
    """Put an irrelevant sentence before or after an instruction; its character range comes back with it.

    It is a fixed one, or of what the instruction is about where ``data`` are :class:`DistractorsData`.
    """
    if isinstance(data, DistractorsData):
        sentence = distractors.on_topic(rng, family, level, knowledge, instruction)
    else:
        sentence = distractors.fixed(rng)
    if rng.random() < 0.5:
        return f"{sentence} {instruction}", (0, len(sentence))
    head = instruction if instruction[-1] in ".?!" else instruction + "."
    return f"{head} {sentence}", (len(head) + 1, len(head) + 1 + len(sentence))


def held_out(data: InstructData) -> list[Item]:
    """Test items of the families that nothing is trained on."""
    return generate(data, "test", data.ood, HELD_OUT) if data.ood else []
