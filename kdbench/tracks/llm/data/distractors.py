"""Irrelevant sentences of instructions: fixed ones, or made anew of what the instruction is about.

Those that are made speak of other numbers, letters, words, persons or deeds than are asked about, so that a model that
does not tell them from the instruction answers with theirs.
"""

from __future__ import annotations

import numpy as np

from kdbench.tracks.llm.data.families import ACTORS, DEEDS, LETTERS, THINGS, TIMES, WORDS, number
from kdbench.tracks.llm.data.knowledge import FIRST, RELATIONS, STATEMENTS, Knowledge

DISTRACTORS = (
    "The weather is mild this week.",
    "A boat left the harbour early.",
    "Many people like warm soup.",
    "The old bridge was closed.",
    "Music played in the square.",
    "The train came a bit late.",
    "Children ran along the river.",
    "The market opens at nine.",
)
"""Sentences that have nothing to do with any answer."""
PATTERNS: dict[str, tuple[str, ...]] = {
    "numbers": (
        "{name} has {a} {thing}s and {b} {other}s.",
        "{name} wrote the numbers {a} and {b}.",
        "The {thing} costs {a} and the {other} {b}.",
    ),
    "letters": (
        "{name} wrote the letters {a} {b} {c}.",
        "The letters {a} {b} {c} are on the {thing}.",
        "{name} likes {a} and {b}.",
    ),
    "words": ("{name} saw a {a} and a {b}.", "{name} wrote the words {a} {b} {c}.", "The {a} is by the {b}."),
    "deeds": ("The {actor} {verb} the {thing} {time}.", "{name} and the {actor} {verb} a {thing}."),
}
"""By topic; ``facts``, about persons, are the statements of the knowledge base."""
TOPICS = {
    **dict.fromkeys(("add", "add_steps", "subtract", "list_max", "list_min", "list_sort", "list_dedupe"), "numbers"),
    **dict.fromkeys(("reverse", "sort_letters", "count_letter"), "letters"),
    **dict.fromkeys(("nth_word", "reverse_words"), "words"),
    "lookup": "facts",
    "rewrite": "deeds",
}
"""What instructions of a family are about; others are about ``facts``."""


def fixed(rng: np.random.Generator) -> str:
    """One of :data:`DISTRACTORS`."""
    return DISTRACTORS[int(rng.integers(len(DISTRACTORS)))]


def on_topic(rng: np.random.Generator, family: str, level: int, knowledge: Knowledge, instruction: str) -> str:
    """A sentence about what ``instruction`` is about, with values of its difficulty ``level``.

    Of a person it says what is true, but never of one that the instruction names.
    """
    topic = TOPICS.get(family, "facts")
    if topic == "facts":
        others = [i for i, name in enumerate(knowledge.persons) if name not in instruction]
        person, relation = others[int(rng.integers(len(others)))], RELATIONS[int(rng.integers(len(RELATIONS)))]
        pattern = pick(rng, STATEMENTS[relation])
        return pattern.format(p=knowledge.persons[person], v=knowledge.facts[relation][person])
    alphabet = "abcd"[: 2 + level // 2] if family == "count_letter" else LETTERS
    draws = {
        "numbers": lambda: str(number(rng, level)),
        "letters": lambda: alphabet[int(rng.integers(len(alphabet)))],
        "words": lambda: pick(rng, WORDS),
        "deeds": lambda: "",
    }
    values = {place: draws[topic]() for place in "abc"}
    values |= {"name": pick(rng, FIRST), "actor": pick(rng, ACTORS), "time": pick(rng, TIMES)}
    values |= {"thing": pick(rng, THINGS), "other": pick(rng, THINGS)}
    values["verb"] = pick(rng, tuple(verb for verbs in DEEDS.values() for verb, _ in verbs))
    return pick(rng, PATTERNS[topic]).format(**values)


def pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    """One of ``choices``, all alike."""
    return choices[int(rng.integers(len(choices)))]
