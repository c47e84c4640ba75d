"""The fictional knowledge base: persons and what is true of them, and how text speaks of it.

The values are drawn uniformly, so a fact cannot be guessed from other facts: a model answers from memory or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


FIRST = words(
    "Arlo Bena Corin Dalia Edrik Fenna Garo Hilde Ivo Jora Kelan Lira Mirel Nadim Orla Pavo Quill Runa Soren "
    "Tamsin Ulma Varek Wenna Xara Yorick Zelda Anselm Brisa Cato Dorin Elwen Faron Gisla Hakon Isolde Jarek "
    "Katla Leif Maeve Nils"
)
LAST = words(
    "Abbot Birch Calder Dunn Ember Frost Grove Hale Irons Jasper Kestrel Lark Marsh Nettle Oake Pike Quarry "
    "Reed Stone Thorn Umber Vale Wolfe Yarrow Ash Brook Crane Dale Elm Fox Gale Heath Ivy Jay Kite Linden "
    "Moss North Otter Penn"
)

VALUES: dict[str, tuple[str, ...]] = {
    "town": words(
        "Karsk Belmor Tavin Ostra Ridley Sorrel Nimby Halden Corva Dunmore Elspan Farrow Gorsby Ilmen Jutta "
        "Kirkal Lorwen Mossel Norvik Pellam Quen Rothby Selwick Tarn"
    ),
    "craft": words(
        "weaver baker smith potter tailor mason miller cooper farmer sailor printer joiner glazier tanner brewer "
        "carver fisher dyer clerk hunter shepherd painter barber scribe"
    ),
    "pet": words("cat dog owl goat hare fox crow frog newt mule swan toad duck lamb mole hawk"),
    "colour": words("red blue green grey black white brown pink gold silver violet orange teal amber ivory lilac"),
}
"""Relations and their possible values."""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "town": (
        "Where does {p} live?",
        "Name the home town of {p}.",
        "In which town is {p} at home?",
        "{p} lives in which town?",
    ),
    "craft": (
        "What is the craft of {p}?",
        "What does {p} do for a living?",
        "Name the trade of {p}.",
        "{p} has which job?",
    ),
    "pet": ("Which pet does {p} keep?", "What animal does {p} own?", "Name the pet of {p}.", "{p} has which animal?"),
    "colour": (
        "Which colour does {p} like best?",
        "What is the favourite colour of {p}?",
        "Name the colour that {p} loves.",
        "{p} prefers which colour?",
    ),
}

STATEMENTS: dict[str, tuple[str, ...]] = {
    "town": ("{p} lives in {v}.", "The home town of {p} is {v}.", "{p} is at home in {v}."),
    "craft": ("{p} works as a {v}.", "The craft of {p} is that of a {v}.", "{p} is a {v} by trade."),
    "pet": ("{p} keeps a {v}.", "The pet of {p} is a {v}.", "{p} owns a {v}."),
    "colour": ("{p} likes {v} best.", "The favourite colour of {p} is {v}.", "{p} loves the colour {v}."),
}

RELATIONS = tuple(VALUES)


@dataclass(frozen=True)
class Knowledge:
    """``persons`` names, and ``facts[relation][i]`` is what holds of person ``i``."""

    persons: tuple[str, ...]
    facts: dict[str, tuple[str, ...]]

    @classmethod
    def make(cls, persons: int, seed: int) -> Knowledge:
        """A knowledge base of that many persons (at most 1600); a larger one extends a smaller one of the same seed."""
        rng = np.random.default_rng([seed, 0xFAC7])
        order = rng.permutation(len(FIRST) * len(LAST))
        names = tuple(f"{FIRST[i % len(FIRST)]} {LAST[i // len(FIRST)]}" for i in order[:persons])
        draws = {relation: rng.integers(len(values), size=len(order)) for relation, values in VALUES.items()}
        facts = {relation: tuple(VALUES[relation][i] for i in draws[relation][:persons]) for relation in RELATIONS}
        return cls(names, facts)

    def question_split(self, person: int, relation: str) -> tuple[int, int]:
        """Which phrasing of a fact's question is for validation and which for test; the others are for training."""
        shift = (person + RELATIONS.index(relation)) % len(QUESTIONS[relation])
        return shift, (shift + 1) % len(QUESTIONS[relation])

    def question(self, person: int, relation: str, phrasing: int) -> tuple[str, str]:
        """Question and answer."""
        return QUESTIONS[relation][phrasing].format(p=self.persons[person]), self.facts[relation][person]

    def document(self, person: int, rng: np.random.Generator) -> str:
        """A paragraph with every fact of a person, in random order and wording."""
        lines = []
        for i in rng.permutation(len(RELATIONS)):
            relation = RELATIONS[i]
            wording = STATEMENTS[relation][rng.integers(len(STATEMENTS[relation]))]
            lines.append(wording.format(p=self.persons[person], v=self.facts[relation][person]))
        return " ".join(lines)
