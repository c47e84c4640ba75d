"""Sentences with named entities in two procedural languages that share their types (PER, LOC, ORG, MISC).

The languages speak of the same entities. A part of the names is written in the same way in both; the target language
transliterates the others, letter by letter. Of all other words a part is common to both, and the others are the
language's own. The order of words is its own, too: the source has subject, verb, object, with prepositions, and the
target has subject, object, verb, with postpositions, adjectives after the noun and the head of a name before the rest;
now and then a sentence or a phrase of one has the order of the other. The source has articles, the target a particle
after the subject. What kind of thing a name stands for is told by its ending for
most names, and by the verb and the nouns around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdbench.tracks.llm.data.cpython import rank
from kdbench.tracks.llm.data.knowledge import words
from kdbench.tracks.llm.data.specs import NerData

TYPES = ("PER", "LOC", "ORG", "MISC")
TAGS = ("O", *(f"{part}-{kind}" for kind in TYPES for part in "BI"))
"""BIO tags: the classes of the models."""

LANGUAGES = ("source", "target")
CONSONANTS = "kgtdpbszfvmnlrcjqwxh"
ENDINGS = {
    "given": words("a o is en el io"),
    "surname": words("son man ler ner ris sen"),
    "place": words("burg ville ton dale ford mere"),
    "company": words("tex corp dyne gen lux mat"),
}
"""Endings that are typical of a kind of name."""
PLAIN = words("an or ek im ul as et un ol ir")
SOUNDS = {
    "source": (words("b d f g k l m n p r s t v br st gr"), words("a e i o u"), words("n r s t l")),
    "target": (words("b d g h k l m n p r s t v z kl dr"), words("a e i o u ai"), words("k m n r t")),
}
"""Onsets, vowels and codas of the words that are not names."""
LEXICON = {
    "meet": 12,  # PER, PER
    "join": 12,  # PER, ORG
    "reach": 12,  # PER, LOC
    "buy": 12,  # ORG, ORG
    "stage": 10,  # LOC, MISC
    "win": 10,  # PER, MISC
    "watch": 12,  # anything, anything
    "noun": 400,
    "role": 40,
    "adjective": 150,
    "adverb": 60,
    "day": 7,
    "organisation": 6,
    "region": 4,
    "event": 5,
    "in": 2,
    "of": 2,
    "the": 1,
    "and": 1,
    "topic": 1,
}
"""Words of each class in either language. There are many, so that a word that was never seen need not be a name."""
CLAUSES = (
    ("PER", "meet", "PER"),
    ("PER", "join", "ORG"),
    ("PER", "reach", "LOC"),
    ("ORG", "buy", "ORG"),
    ("LOC", "stage", "MISC"),
    ("PER", "win", "MISC"),
    ("any", "watch", "any"),
    ("noun", "watch", "any"),
    ("noun", "watch", "noun"),
)
"""Subject, verb and object."""


@dataclass(frozen=True)
class Sentence:
    """Words, and a BIO tag of each; no tags where the sentence is unlabelled."""

    words: list[str]
    tags: list[str]
    language: str

    @property
    def text(self) -> str:
        return " ".join(self.words)


def transliteration(moved: int) -> dict[int, int]:
    """Code points of the target for those of the source: the first ``moved`` consonants turn into one another."""
    letters = CONSONANTS[:moved]
    turned = letters[1:] + letters[:1]
    return str.maketrans(letters + letters.upper(), turned + turned.upper())


class World:
    """Names, lexicons and grammars: what all splits of a data set have in common."""

    def __init__(self, data: NerData) -> None:
        self.data = data
        rng = np.random.default_rng([data.seed, 0x0E27])
        self.table = transliteration(data.moved)
        self.taken: set[str] = set()
        self.lexicon = {
            language: {kind: [self._word(rng, language) for _ in range(count)] for kind, count in LEXICON.items()}
            for language in LANGUAGES
        }
        for kind, known in self.lexicon["target"].items():
            alike = rng.random(len(known)) < data.cognates
            known[:] = [a if same else b for a, b, same in zip(self.lexicon["source"][kind], known, alike, strict=True)]
        counts = {"given": 40, "surname": data.names, "place": data.names, "company": data.names}
        self.names = {kind: [self._name(rng, kind) for _ in range(count)] for kind, count in counts.items()}
        self.acronyms = [self._acronym(rng) for _ in range(data.names // 2)]

    def _word(self, rng: np.random.Generator, language: str) -> str:
        onsets, vowels, codas = SOUNDS[language]
        while True:
            syllables = 1 + int(rng.integers(2))
            word = "".join(str(rng.choice(onsets) + rng.choice(vowels)) for _ in range(syllables))
            word += str(rng.choice(codas)) if rng.random() < 0.5 else ""
            if word not in self.taken:
                self.taken.add(word)
                return word

    def _pair(self, rng: np.random.Generator, name: str) -> tuple[str, str]:
        """A name in the source and in the target language."""
        return name, name if rng.random() < self.data.shared else name.translate(self.table)

    def _name(self, rng: np.random.Generator, kind: str) -> tuple[str, str]:
        while True:
            stem = "".join(str(rng.choice(list(CONSONANTS[:16])) + rng.choice(list("aeiou"))) for _ in range(2))
            stem = stem[: 3 + int(rng.integers(2))]
            typical = rng.random() < self.data.typical
            name = (stem + str(rng.choice(ENDINGS[kind] if typical else PLAIN))).capitalize()
            if name not in self.taken:
                self.taken.add(name)
                return self._pair(rng, name)

    def _acronym(self, rng: np.random.Generator) -> tuple[str, str]:
        return self._pair(rng, "".join(str(letter) for letter in rng.choice(list(CONSONANTS.upper()), 3)))

    def pick(self, rng: np.random.Generator, language: str, kind: str) -> str:
        """A word of the lexicon."""
        choices = self.lexicon[language][kind]
        return choices[int(rng.integers(len(choices)))]

    def name(self, rng: np.random.Generator, language: str, kind: str) -> str:
        names = self.acronyms if kind == "acronym" else self.names[kind]
        return names[int(rng.integers(len(names)))][LANGUAGES.index(language)]

    def entity(self, rng: np.random.Generator, language: str, kind: str) -> list[str]:
        """Words of an entity of a type."""
        chance, source = rng.random(), self.source_order(rng, language)
        if kind == "PER":
            last = self.name(rng, language, "surname")
            return [self.name(rng, language, "given"), last] if chance < 0.7 else [last]
        if kind == "ORG" and chance < 0.5:
            return [self.name(rng, language, "company" if chance < 0.25 else "acronym")]
        if kind == "LOC" and chance < 0.75:
            return [self.name(rng, language, "place")]
        head = {"ORG": "organisation", "LOC": "region", "MISC": "event"}[kind]
        rest = "surname" if kind == "ORG" and chance < 0.75 else "place"
        parts = [self.name(rng, language, rest), self.pick(rng, language, head).capitalize()]
        return parts if source else parts[::-1]

    def source_order(self, rng: np.random.Generator, language: str) -> bool:
        """Whether the next words stand in the order that is usual in the source language."""
        return (language == "source") != (rng.random() < self.data.mixed)

    def phrase(self, rng: np.random.Generator, language: str, kind: str) -> list[tuple[str, str]]:
        """Words and tags of a noun phrase; ``kind`` is a type, ``any`` of them, or ``noun``."""
        source = self.source_order(rng, language)
        if kind == "any":
            kind = TYPES[int(rng.integers(len(TYPES)))]
        if kind == "noun":
            noun = self.pick(rng, language, "noun")
            pair = [noun]
            if rng.random() < 0.5:
                adjective = self.pick(rng, language, "adjective")
                pair = [adjective, noun] if source else [noun, adjective]
            articles = [self.pick(rng, language, "the")] if language == "source" else []
            return [(word, "O") for word in articles + pair]
        name = self.entity(rng, language, kind)
        tagged = [(word, f"{'I' if i else 'B'}-{kind}") for i, word in enumerate(name)]
        if kind == "PER" and rng.random() < 0.3:  # a role stands beside the name
            role = [(self.pick(rng, language, "role"), "O")]
            return role + tagged if source else tagged + role
        return tagged

    def adjunct(self, rng: np.random.Generator, language: str) -> list[tuple[str, str]]:
        """Where, or on which day, or nothing."""
        chance = rng.random()
        if chance < 0.4:
            return []
        particle = [(self.pick(rng, language, "in" if chance < 0.8 else "of"), "O")]
        if chance < 0.65:
            what = self.phrase(rng, language, "LOC")
        elif chance < 0.8:
            what = [(self.pick(rng, language, "day").capitalize(), "O")]
        else:
            what = self.phrase(rng, language, "noun")
        return particle + what if self.source_order(rng, language) else what + particle

    def sentence(self, rng: np.random.Generator, language: str) -> Sentence:
        """One sentence with its tags."""
        first, verb, second = CLAUSES[int(rng.integers(len(CLAUSES)))]
        subject, thing = self.phrase(rng, language, first), self.phrase(rng, language, second)
        if rng.random() < 0.2:
            subject = subject + [(self.pick(rng, language, "and"), "O")] + self.phrase(rng, language, first)
        action, place = [(self.pick(rng, language, verb), "O")], self.adjunct(rng, language)
        source = self.source_order(rng, language)
        if language == "target":
            subject = [*subject, (self.pick(rng, language, "topic"), "O")]
        parts = [*subject, *action, *thing, *place] if source else [*place, *subject, *thing, *action]
        if rng.random() < 0.3:
            adverb = [(self.pick(rng, language, "adverb"), "O")]
            parts = adverb + parts if source else parts + adverb
        parts[0] = (parts[0][0][0].upper() + parts[0][0][1:], parts[0][1])
        return Sentence([word for word, _ in parts] + ["."], [tag for _, tag in parts] + ["O"], language)


PARTS = {"train": (0, 1, 2), "val": (3,), "test": (4,)}
"""Splits by a hash of the text, so that no sentence is in two."""


def sentences(data: NerData, part: str, language: str, count: int) -> list[Sentence]:
    """Distinct sentences of one language for one of :data:`PARTS`, with tags; they do not depend on other splits."""
    world = World(data)
    rng = np.random.default_rng([data.seed, tuple(PARTS).index(part), LANGUAGES.index(language), 0x5E27])
    seen: set[str] = set()
    rows: list[Sentence] = []
    while len(rows) < count:
        row = world.sentence(rng, language)
        if row.text not in seen and int(rank(row.text)[:2], 16) % 5 in PARTS[part]:
            seen.add(row.text)
            rows.append(row)
    return rows
