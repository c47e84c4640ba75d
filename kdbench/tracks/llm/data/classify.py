"""Classification data: procedural reviews with a hidden topic, and docstrings by the module they stand in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdbench.cache import Cache
from kdbench.errors import JobError
from kdbench.tracks.llm.data import cpython
from kdbench.tracks.llm.data.cpython import rank
from kdbench.tracks.llm.data.knowledge import words
from kdbench.tracks.llm.data.specs import DocstringsData, ReviewsData

TOPICS: dict[str, tuple[str, ...]] = {
    "food": ("soup", "bread", "menu", "dessert", "waiter"),
    "film": ("plot", "acting", "ending", "scene", "score"),
    "phone": ("screen", "battery", "camera", "speaker", "button"),
    "hotel": ("room", "bed", "lobby", "shower", "view"),
    "book": ("chapter", "story", "cover", "style", "hero"),
    "car": ("engine", "seat", "brake", "radio", "trunk"),
    "game": ("level", "boss", "map", "music", "quest"),
    "shoe": ("sole", "lace", "heel", "leather", "fit"),
}
"""The hidden aspect of a review and the things it speaks of."""

GOOD = words("great good lovely superb fine pleasant solid excellent charming brilliant")
BAD = words("awful bad poor dull weak terrible shoddy horrible boring broken")
PATTERNS = (
    "The {thing} was {word}.",
    "I found the {thing} {word}.",
    "A {word} {thing}, I must say.",
    "My friend called the {thing} {word}.",
)
NEGATED = (
    "The {thing} was not {word} at all.",
    "Nobody would call the {thing} {word}.",
    "I never found the {thing} {word}.",
)
NEUTRAL = (
    "I bought it last week.",
    "It came in a box.",
    "We went there on Monday.",
    "My brother was with me.",
    "There was a {thing}.",
    "I read about the {thing} before.",
)


@dataclass(frozen=True)
class Example:
    """A text, its class, and what else is known about it."""

    text: str
    label: int
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassData:
    """Examples by split, and the names of the classes."""

    splits: dict[str, list[Example]]
    classes: tuple[str, ...]


def review(rng: np.random.Generator, sentences: tuple[int, int]) -> Example:
    """One review: most sentences carry its sentiment, often through negation; others say nothing.

    A third of the reviews has one sentence against its sentiment, always outnumbered: the class is a count, not a word.
    """
    label = int(rng.integers(2))
    topic = tuple(TOPICS)[int(rng.integers(len(TOPICS)))]
    count = int(rng.integers(sentences[0], sentences[1] + 1))

    def opinion(positive: bool) -> str:
        negated = rng.random() < 0.4
        words = GOOD if positive != negated else BAD
        patterns = NEGATED if negated else PATTERNS
        thing = TOPICS[topic][int(rng.integers(5))]
        return patterns[int(rng.integers(len(patterns)))].format(thing=thing, word=words[int(rng.integers(len(words)))])

    lines = [opinion(label == 1) for _ in range(count)]
    if count >= 2 and rng.random() < 1 / 3:
        lines[0] = opinion(label == 0)
        lines.append(opinion(label == 1))
    if rng.random() < 0.7:
        pattern = NEUTRAL[int(rng.integers(len(NEUTRAL)))]
        lines.append(pattern.format(thing=TOPICS[topic][int(rng.integers(5))]))
    text = " ".join(lines[i] for i in rng.permutation(len(lines)))
    return Example(text, label, {"topic": topic})


def reviews(data: ReviewsData) -> ClassData:
    """Distinct reviews; labels of the training split carry noise, ``meta["clean"]`` is the true class."""
    seen: set[str] = set()
    splits: dict[str, list[Example]] = {}
    for number, (name, count) in enumerate((("train", data.train), ("val", data.val), ("test", data.test))):
        # Each split has its own stream, so that the size of one does not change the others; test and validation
        # are drawn from texts whose hash keeps them out of training.
        rng = np.random.default_rng([data.seed, number, 0x3E71E])
        rows: list[Example] = []
        while len(rows) < count:
            example = review(rng, data.sentences)
            bucket = int(rank(example.text)[:2], 16) % 5
            if example.text in seen or (name == "train") != (bucket < 3) or (name == "val") != (bucket == 3):
                continue
            seen.add(example.text)
            flip = name == "train" and rng.random() < data.label_noise
            label = 1 - example.label if flip else example.label
            rows.append(Example(example.text, label, {**example.meta, "clean": example.label}))
        splits[name] = rows
    return ClassData(splits, ("negative", "positive"))


def docstrings(data: DocstringsData, cache: Cache) -> ClassData:
    """Distinct docstrings and their top-level module; 70/10/20 % by a hash of the text."""
    rows = cpython.load(cache, data.digest)["docstrings"]
    owners: dict[str, set[str]] = {}
    for row in rows:
        owners.setdefault(row["text"], set()).add(row["module"])
    unique = {text: next(iter(modules)) for text, modules in owners.items() if len(modules) == 1}
    counts = Counter(unique.values())
    classes = tuple(sorted(sorted(counts, key=lambda name: (-counts[name], name))[: data.classes]))
    splits: dict[str, list[Example]] = {"train": [], "val": [], "test": []}
    for text in sorted(unique, key=lambda text: rank(f"{data.seed} {text}")):
        if unique[text] in classes:
            bucket = int(rank("split " + text)[:4], 16) % 10
            name = "train" if bucket < 7 else "val" if bucket == 7 else "test"
            splits[name].append(Example(text, classes.index(unique[text])))
    limits = {"train": data.train, "val": data.val, "test": data.test}
    for name, limit in limits.items():
        if limit is not None and name != "train" and len(splits[name]) < limit:
            raise JobError(f"{name}: {limit} docstrings asked for, but there are {len(splits[name])}")
        splits[name] = splits[name][:limit]
    return ClassData(splits, classes)
