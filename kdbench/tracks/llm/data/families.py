"""Families of instructions: each draws an instruction and knows every valid answer with its probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdbench.tracks.llm.data import passages
from kdbench.tracks.llm.data.knowledge import RELATIONS, Knowledge, words

WORDS = words(
    "red cat sky tree moon fish lamp door hill rain book fire snow bell coin leaf ship wind road star bird "
    "corn rope salt milk sand wool drum gate iron"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Draft:
    """An instruction with its valid answers and their probabilities (they sum to 1)."""

    instruction: str
    answers: tuple[str, ...]
    probabilities: tuple[float, ...] = (1.0,)


Sampler = Callable[[np.random.Generator, int], Draft]


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def number(rng: np.random.Generator, level: int) -> int:
    """Up to 10, 50, 100 or 1000 (exclusive) for levels 1 to 4."""
    return int(rng.integers((10, 50, 100, 1000)[level - 1]))


def _one(instruction: str, answer: object) -> Draft:
    return Draft(instruction, (str(answer),))


def add(rng: np.random.Generator, level: int) -> Draft:
    a, b = number(rng, level), number(rng, level)
    return _one(_pick(rng, ("Add {a} and {b}.", "What is {a} + {b}?", "Compute {a} + {b}.")).format(a=a, b=b), a + b)


def add_steps(rng: np.random.Generator, level: int) -> Draft:
    """Column addition with its working; the result stands after ``=>``."""
    a, b = number(rng, max(2, level)), number(rng, max(2, level))
    steps, carry, left, right = [], 0, a, b
    while left or right or not steps:
        total = left % 10 + right % 10 + carry
        steps.append(f"{left % 10}+{right % 10}" + (f"+{carry}" if carry else "") + f"={total}")
        carry, left, right = total // 10, left // 10, right // 10
    return _one(f"Add {a} and {b} step by step.", f"{', '.join(steps)} => {a + b}")


def subtract(rng: np.random.Generator, level: int) -> Draft:
    a, b = sorted((number(rng, level), number(rng, level)), reverse=True)
    wording = _pick(rng, ("Subtract {b} from {a}.", "What is {a} - {b}?", "Compute {a} - {b}."))
    return _one(wording.format(a=a, b=b), a - b)


def _letters(rng: np.random.Generator, count: int, alphabet: str = LETTERS) -> list[str]:
    return [alphabet[i] for i in rng.integers(len(alphabet), size=count)]


def reverse(rng: np.random.Generator, level: int) -> Draft:
    letters = _letters(rng, int(rng.integers(level + 2, level + 4)))
    return _one(f"Reverse the letters: {' '.join(letters)}", " ".join(reversed(letters)))


def sort_letters(rng: np.random.Generator, level: int) -> Draft:
    letters = _letters(rng, int(rng.integers(level + 2, level + 4)))
    return _one(f"Sort the letters: {' '.join(letters)}", " ".join(sorted(letters)))


def count_letter(rng: np.random.Generator, level: int) -> Draft:
    alphabet = "abcd"[: 2 + level // 2]
    letters = _letters(rng, int(rng.integers(level + 3, level + 6)), alphabet)
    letter = alphabet[int(rng.integers(len(alphabet)))]
    return _one(f"How often is {letter} in: {' '.join(letters)}?", letters.count(letter))


def _words(rng: np.random.Generator, count: int) -> list[str]:
    return [WORDS[i] for i in rng.choice(len(WORDS), size=count, replace=False)]


def nth_word(rng: np.random.Generator, level: int) -> Draft:
    chosen = _words(rng, level + 2)
    position = int(rng.integers(len(chosen)))
    ordinal = ("first", "second", "third", "fourth", "fifth", "sixth")[position]
    return _one(f"Give the {ordinal} word: {' '.join(chosen)}", chosen[position])


def reverse_words(rng: np.random.Generator, level: int) -> Draft:
    chosen = _words(rng, level + 2)
    return _one(f"Reverse the words: {' '.join(chosen)}", " ".join(reversed(chosen)))


def _numbers(rng: np.random.Generator, level: int) -> list[int]:
    return [int(n) for n in rng.integers(10 if level < 2 else 100, size=int(rng.integers(level + 2, level + 4)))]


def _listed(numbers: list[int]) -> str:
    return " ".join(str(number) for number in numbers)


def list_max(rng: np.random.Generator, level: int) -> Draft:
    numbers = _numbers(rng, level)
    return _one(f"Largest number of: {_listed(numbers)}", max(numbers))


def list_min(rng: np.random.Generator, level: int) -> Draft:
    numbers = _numbers(rng, level)
    return _one(f"Smallest number of: {_listed(numbers)}", min(numbers))


def list_sort(rng: np.random.Generator, level: int) -> Draft:
    numbers = _numbers(rng, level)
    return _one(f"Sort the numbers: {_listed(numbers)}", _listed(sorted(numbers)))


def list_dedupe(rng: np.random.Generator, level: int) -> Draft:
    pool = rng.integers(10, size=level + 2)
    numbers = [int(n) for n in rng.choice(pool, size=level + 4)]
    return _one(f"Drop repeated numbers: {_listed(numbers)}", _listed(list(dict.fromkeys(numbers))))


# --- a probabilistic grammar -----------------------------------------------------------------------------------------

ACTORS = ("baker", "smith", "sailor", "farmer", "weaver", "clerk", "miller", "potter", "hunter", "mason")
DEEDS: dict[str, tuple[tuple[str, float], tuple[str, float]]] = {
    "make": (("made", 0.7), ("built", 0.3)),
    "take": (("took", 0.6), ("grabbed", 0.4)),
    "find": (("found", 0.8), ("spotted", 0.2)),
    "sell": (("sold", 0.5), ("traded", 0.5)),
    "fix": (("fixed", 0.65), ("repaired", 0.35)),
}
PASSIVE = {"took": "taken"}
THINGS = ("boat", "lamp", "chair", "bell", "cart", "gate", "clock", "drum", "table", "rope")
TIMES = ("today", "at noon", "at night", "on Monday", "in May")
ORDERS: tuple[tuple[str, float], ...] = (
    ("The {actor} {verb} the {thing} {time}.", 0.5),
    ("The {thing} was {participle} by the {actor} {time}.", 0.3),
    ("{Time} the {actor} {verb} the {thing}.", 0.2),
)


def rewrite(rng: np.random.Generator, level: int) -> Draft:
    """Keywords to a sentence: three word orders times two verbs, each with its probability."""
    del level
    actor, thing = ACTORS[rng.integers(len(ACTORS))], THINGS[rng.integers(len(THINGS))]
    deed = tuple(DEEDS)[rng.integers(len(DEEDS))]
    time = TIMES[rng.integers(len(TIMES))]
    answers, probabilities = [], []
    for pattern, share in ORDERS:
        for verb, chance in DEEDS[deed]:
            values = {"actor": actor, "thing": thing, "verb": verb, "participle": PASSIVE.get(verb, verb), "time": time}
            answers.append(pattern.format(**values, Time=time[0].upper() + time[1:]))
            probabilities.append(share * chance)
    return Draft(f"Write a sentence: {actor}, {deed}, {thing}, {time}", tuple(answers), tuple(probabilities))


# --- questions about a passage ----------------------------------------------------------------------------------------


def passage_value(rng: np.random.Generator, level: int) -> Draft:
    return _one(*passages.value(rng, level))


def passage_who(rng: np.random.Generator, level: int) -> Draft:
    return _one(*passages.who(rng, level))


def passage_report(rng: np.random.Generator, level: int) -> Draft:
    return _one(*passages.report(rng, level))


SAMPLERS: dict[str, Sampler] = {
    "add": add,
    "add_steps": add_steps,
    "subtract": subtract,
    "reverse": reverse,
    "sort_letters": sort_letters,
    "count_letter": count_letter,
    "nth_word": nth_word,
    "list_max": list_max,
    "list_sort": list_sort,
    "list_dedupe": list_dedupe,
    "rewrite": rewrite,
    "list_min": list_min,
    "reverse_words": reverse_words,
    "passage_value": passage_value,
    "passage_who": passage_who,
    "passage_report": passage_report,
}
"""Every family but ``lookup``, whose questions depend on the split (see :func:`lookup`)."""


def lookup(rng: np.random.Generator, knowledge: Knowledge, split: str) -> Draft:
    """A question about the knowledge base. Every fact is asked in training, but in other words than in val and test."""
    person = int(rng.integers(len(knowledge.persons)))
    relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
    val, test = knowledge.question_split(person, relation)
    if split == "train":
        free = [i for i in range(4) if i not in (val, test)]
        phrasing = free[int(rng.integers(len(free)))]
    else:
        phrasing = val if split == "val" else test
    return _one(*knowledge.question(person, relation, phrasing))


def final_answer(response: str) -> str:
    """What a response comes to: the text after the last ``=>`` (working with steps), spaces at both ends removed."""
    return response.rsplit("=>", 1)[-1].strip()


def check(family: str, response: str, answers: tuple[str, ...]) -> bool:
    """Whether a response is right: for ``add_steps`` the result alone decides, otherwise the whole response."""
    if family == "add_steps":
        return "=>" in response and final_answer(response) == final_answer(answers[0])
    return response.strip() in answers
