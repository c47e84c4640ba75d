"""Few-shot tasks that are made by procedure, and plain text of the same words.

An input is an adjective and a noun. The rule of a task says which of the two words decides, and which kinds of that
word belong to which class (a cat is an animal, red is a colour); what the classes are called is drawn anew for every
task from words without a meaning. What an input's label is can thus only be known from demonstrations.

The plain text tells of persons and what they own and like, and says it again later, so that its end is foreseen from
its beginning, as in real text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from kdbench.tracks.llm.data.knowledge import words
from kdbench.tracks.llm.data.specs import IclData

ADJECTIVES: dict[str, tuple[str, ...]] = {
    "colour": words("red blue green white"),
    "size": words("big small tall tiny"),
    "taste": words("sweet sour salty bitter"),
    "warmth": words("hot cold warm cool"),
    "mood": words("glad sad angry calm"),
    "sound": words("loud quiet shrill mute"),
    "shape": words("round flat square bent"),
    "age": words("old new young fresh"),
}
NOUNS: dict[str, tuple[str, ...]] = {
    "animals": words("cat dog hen cow"),
    "tools": words("saw axe rake drill"),
    "foods": words("bread soup cake rice"),
    "plants": words("oak rose fern moss"),
    "clothes": words("hat coat sock shoe"),
    "vessels": words("cup jar pot bowl"),
    "vehicles": words("car bus boat train"),
    "places": words("barn shop mill tower"),
}
SIDES = (ADJECTIVES, NOUNS)
LABELS = words(
    "dax wug fep blick zorb toma lirn quop snev gril plon vask mip drell huft jang kesp nurb olvi pim "
    "raff sulk trob umfa vorn wix yelp zent bram clob"
)
"""Names of classes."""
NAMES = words("ana bo cara dan eva finn gina hugo ines jon kira leo mia ned olga pat")
SPLITS = ("train", "val", "test")
ARROW, SEPARATOR = " ->", " ;"
"""What stands before a label, and after a demonstration."""


@dataclass(frozen=True)
class Rule:
    """Which word decides, and the kinds of each class."""

    side: int
    """0: the adjective, 1: the noun."""
    kinds: tuple[tuple[str, ...], ...]
    """Kinds of each class, none in two classes."""

    @property
    def name(self) -> str:
        return ("adjective", "noun")[self.side] + ": " + " | ".join(" ".join(group) for group in self.kinds)


@dataclass(frozen=True)
class Episode:
    """One query with the demonstrations of its task."""

    task: int
    """Number of the task within its split; all its queries have the same demonstrations."""
    rule: str
    demonstrations: tuple[tuple[str, str], ...]
    """Inputs and labels."""
    query: str
    label: str
    options: tuple[str, ...]
    """Names of the classes."""

    @property
    def context(self) -> str:
        """The demonstrations as text."""
        return "".join(f" {text}{ARROW} {label}{SEPARATOR}" for text, label in self.demonstrations)

    @property
    def question(self) -> str:
        """The query as text, without its label."""
        return f" {self.query}{ARROW}"

    @property
    def prompt(self) -> str:
        """Everything before the response."""
        return self.context + self.question

    @property
    def response(self) -> str:
        return f" {self.label}"

    @property
    def text(self) -> str:
        return self.prompt + self.response

    @property
    def parts(self) -> list[tuple[str, bool]]:
        """The text in parts, and which of them are labels."""
        made = []
        for text, label in (*self.demonstrations, (self.query, self.label)):
            made += [(f" {text}{ARROW}", False), (f" {label}", True), (SEPARATOR, False)]
        return made[:-1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Episode:
        shown = tuple((text, label) for text, label in row["demonstrations"])
        return cls(**{**row, "demonstrations": shown, "options": tuple(row["options"])})


# --- tasks ------------------------------------------------------------------------------------------------------------


@cache
def rules(classes: int, kinds: int) -> dict[str, tuple[Rule, ...]]:
    """All rules with ``kinds`` kinds in each of ``classes`` classes, by the split that they belong to.

    They are in a random order that their names decide: the first tenth is for validation, the second for testing, the
    others for training, so that no rule is in two splits.
    """
    found = [
        Rule(side, groups)
        for side, lexicon in enumerate(SIDES)
        for chosen in combinations(lexicon, classes * kinds)
        for groups in _partitions(chosen, kinds)
    ]
    found.sort(key=lambda rule: hashlib.sha256(rule.name.encode()).digest())
    tenth = len(found) // 10
    return {"val": tuple(found[:tenth]), "test": tuple(found[tenth : 2 * tenth]), "train": tuple(found[2 * tenth :])}


def _partitions(items: tuple[str, ...], size: int) -> list[tuple[tuple[str, ...], ...]]:
    """All ways to divide items into groups of ``size``, whatever the order of the groups."""
    if not items:
        return [()]
    first, made = items[0], []
    for others in combinations(items[1:], size - 1):
        left = tuple(item for item in items[1:] if item not in others)
        made += [((first, *others), *rest) for rest in _partitions(left, size)]
    return made


def _input(rng: np.random.Generator, rule: Rule, label: int) -> str:
    """An input of a class; the word that does not decide is any of its side."""
    chosen = []
    for side, lexicon in enumerate(SIDES):
        kinds = rule.kinds[label] if side == rule.side else tuple(lexicon)
        chosen.append(_pick(rng, lexicon[_pick(rng, kinds)]))
    return " ".join(chosen)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _balanced(rng: np.random.Generator, count: int, classes: int) -> list[int]:
    """``count`` classes in random order, as evenly as possible."""
    return [int(place) for place in rng.permutation(np.arange(count) % classes)]


def episodes(data: IclData, split: str) -> list[Episode]:
    """Rows of a split, the same for the same data: training tasks have one query each, others ``data.queries``.

    Queries are inputs that no demonstration of their task has.
    """
    rng = np.random.default_rng([data.seed, SPLITS.index(split), 0x1C1])
    known, made = rules(data.classes, data.kinds)[split], []
    for task in range(getattr(data, split)):
        rule = known[int(rng.integers(len(known)))]
        options = tuple(LABELS[i] for i in rng.choice(len(LABELS), size=data.classes, replace=False))
        seen: set[str] = set()

        def draw(label: int, rule: Rule = rule, seen: set[str] = seen) -> str:
            while (text := _input(rng, rule, label)) in seen:
                pass
            seen.add(text)
            return text

        shown = [(draw(label), options[label]) for label in _balanced(rng, data.demonstrations, data.classes)]
        if split == "train":
            for i in range(1, len(shown)):
                if rng.random() < data.repeats:
                    shown[i] = shown[int(rng.integers(i))]
        for label in _balanced(rng, 1 if split == "train" else data.queries, data.classes):
            made.append(Episode(task, rule.name, tuple(shown), draw(label), options[label], options))
    return made


# --- exercises --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exercise:
    """Two demonstrations, and both again in random order: the labels that come again can be looked up."""

    shown: tuple[tuple[str, str, str], ...]
    """Adjective, noun and label of four demonstrations."""
    stage: str
    """``echo``, ``recall`` or ``hint``, as :func:`exercises` says."""

    @property
    def parts(self) -> list[tuple[str, bool]]:
        """The text in parts, and which of them are scored: the labels that come again, and nouns that surely do."""
        arrow, made = "" if self.stage == "echo" else ARROW, []
        for place, (adjective, noun, label) in enumerate(self.shown):
            again = place >= 2
            made += [(f" {adjective}", False), (f" {noun}", again and self.stage != "hint")]
            made += [(arrow, False), (f" {label}", again), (SEPARATOR, False)]
        return made


def exercises(data: IclData, stage: str) -> list[Exercise]:
    """``data.train`` exercises of a stage: ``echo`` without arrows, ``recall`` with them, ``hint`` with a change.

    Small networks learn to look up a label in stretches, each at once after a long time without any progress. Where a
    label follows its words immediately and is one of two, that time is short; the arrow, which is the same in all
    demonstrations, makes it a matter of two steps. In a hint seven of ten demonstrations that come again have another
    adjective or another noun, so that either word tells the label. No exercise speaks of a rule.
    """
    rng = np.random.default_rng([data.seed, ("echo", "recall", "hint").index(stage), 0xEC40])
    sides, made = [tuple(word for members in lexicon.values() for word in members) for lexicon in SIDES], []
    for _ in range(data.train):
        columns = [[words[i] for i in rng.choice(len(words), size=2, replace=False)] for words in (*sides, LABELS)]
        first = list(zip(*columns, strict=True))
        again = [list(first[i]) for i in rng.permutation(2)]
        for demonstration in again:
            if stage == "hint" and rng.random() < 0.7:
                side = int(rng.integers(2))
                demonstration[side] = _pick(rng, sides[side])
        made.append(Exercise((*first, *((a, b, label) for a, b, label in again)), stage))
    return made


# --- plain text -------------------------------------------------------------------------------------------------------


def stories(data: IclData) -> list[str]:
    """``data.stories`` texts of ``data.sentences`` sentences; the first six of each say all that the others repeat."""
    rng = np.random.default_rng([data.seed, 0x7A1E])
    return ["".join(_story(rng, data.sentences)) for _ in range(data.stories)]


def _story(rng: np.random.Generator, count: int) -> list[str]:
    """Sentences about three persons: what each has and likes, then the one again, or something that follows."""
    owns, likes = [], []
    for i in rng.choice(len(NAMES), size=3, replace=False):
        owns.append(f" {NAMES[i]} has a {_any(rng, ADJECTIVES)} {_any(rng, NOUNS)} .")
        likes.append((NAMES[i], _pick(rng, tuple(NOUNS))))
    facts = owns + [f" {name} likes {kind} ." for name, kind in likes]
    said = [facts[i] for i in rng.permutation(len(facts))]
    while len(said) < count:
        if rng.random() < 0.5:
            said.append(_pick(rng, owns))
        else:
            name, kind = likes[int(rng.integers(len(likes)))]
            said.append(f" {name} takes the {_any(rng, ADJECTIVES)} {_pick(rng, NOUNS[kind])} .")
    return said


def _any(rng: np.random.Generator, lexicon: dict[str, tuple[str, ...]]) -> str:
    return _pick(rng, lexicon[_pick(rng, tuple(lexicon))])
