"""Questions about a passage: long inputs with short answers. What is asked stands in the passage and nowhere else.

A passage speaks of a few persons in sentences of the knowledge base's wordings, with values that are drawn anew for
every passage, so that no model can answer from memory; sentences that have nothing to do with anybody stand between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdbench.tracks.llm.data.knowledge import FIRST, LAST, QUESTIONS, RELATIONS, STATEMENTS, VALUES

WHO: dict[str, str] = {
    "town": "Who lives in {v}?",
    "craft": "Who works as a {v}?",
    "pet": "Who keeps a {v}?",
    "colour": "Who likes {v} best?",
}
"""Questions from the value to the person."""

ASIDES = (
    "It had rained since the morning.",
    "The road to the hills is long.",
    "Nobody had seen the ferry.",
    "A lamp was left on the stairs.",
    "The bells were heard far away.",
    "Bread was dear that year.",
    "The council met in the old hall.",
    "Snow lay on the roofs.",
)
"""Sentences that no question is about."""

FACTS = 2
"""Sentences about each person."""


@dataclass(frozen=True)
class Passage:
    """A text, and what it says of whom."""

    text: str
    facts: dict[str, dict[str, str]]
    """Person to relation to value; no value of a relation is that of two persons."""


def passage(rng: np.random.Generator, level: int) -> Passage:
    """``level + 1`` persons with two facts each, every fact said twice in different words, and ``level`` asides.

    All facts stand once before any stands again; the order is random. Said again, a fact can be predicted from the
    passage: training on every token teaches to look up in more places than the answer.
    """
    count = level + 1
    firsts, lasts = rng.choice(len(FIRST), count, replace=False), rng.choice(len(LAST), count, replace=False)
    persons = [f"{FIRST[i]} {LAST[j]}" for i, j in zip(firsts, lasts, strict=True)]
    values = {relation: rng.choice(len(VALUES[relation]), count, replace=False) for relation in RELATIONS}
    facts: dict[str, dict[str, str]] = {}
    once, again = [], []
    for place, person in enumerate(persons):
        chosen = [RELATIONS[i] for i in rng.choice(len(RELATIONS), FACTS, replace=False)]
        facts[person] = {relation: VALUES[relation][values[relation][place]] for relation in chosen}
        for relation, value in facts[person].items():
            wordings = STATEMENTS[relation]
            first, second = rng.choice(len(wordings), 2, replace=False)
            once.append(wordings[first].format(p=person, v=value))
            again.append(wordings[second].format(p=person, v=value))
    sentences = [part[i] for part in (once, again) for i in rng.permutation(len(part))]
    for i in rng.choice(len(ASIDES), level, replace=False):
        sentences.insert(int(rng.integers(len(sentences) + 1)), ASIDES[i])
    return Passage(" ".join(sentences), facts)


def _somebody(rng: np.random.Generator, found: Passage) -> tuple[str, dict[str, str]]:
    person = list(found.facts)[int(rng.integers(len(found.facts)))]
    return person, found.facts[person]


def value(rng: np.random.Generator, level: int) -> tuple[str, str]:
    """Instruction and answer: one fact of a person."""
    found = passage(rng, level)
    person, facts = _somebody(rng, found)
    relation = list(facts)[int(rng.integers(len(facts)))]
    question = QUESTIONS[relation][int(rng.integers(len(QUESTIONS[relation])))].format(p=person)
    return f"{question}\n{found.text}", facts[relation]


def who(rng: np.random.Generator, level: int) -> tuple[str, str]:
    """Instruction and answer: whom a fact is about."""
    found = passage(rng, level)
    person, facts = _somebody(rng, found)
    relation = list(facts)[int(rng.integers(len(facts)))]
    return f"{WHO[relation].format(v=facts[relation])}\n{found.text}", person


def report(rng: np.random.Generator, level: int) -> tuple[str, str]:
    """Instruction and answer: both facts of a person, in the order of the relations."""
    found = passage(rng, level)
    person, facts = _somebody(rng, found)
    relations = [relation for relation in RELATIONS if relation in facts]
    return f"Give {' and '.join(relations)} of {person}.\n{found.text}", ", ".join(facts[r] for r in relations)
