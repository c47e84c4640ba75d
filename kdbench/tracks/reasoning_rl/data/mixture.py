"""Rows that checkpoints are trained on: plain problems, and the same behind contexts that training may use later.

A small model has no ability to use a context that it was not trained to use. Without this mixture every method that
conditions the model on something would silently do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdbench.tracks.reasoning_rl.data import contexts
from kdbench.tracks.reasoning_rl.data.problems import Problem
from kdbench.tracks.reasoning_rl.data.styles import RULES, solution, written
from kdbench.tracks.reasoning_rl.data.verify import verify

CONDITIONED = {"reference": 0.25, "critique": 0.5, "revision": 0.1, "demonstration": 0.05, "rule": 0.1}
"""How often each context is drawn where one is."""
DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def corrupted(problem: Problem, rng: np.random.Generator) -> str:
    """A solution that goes wrong at one step and stays wrong to the answer, as attempts do that build on an error.

    Small models learn to weigh a critique against what they believe and what the attempt says. Were most of the attempt
    right, or what is wrong of it absurd, they would follow both against the critique of an attempt of their own.
    """
    place = int(rng.integers(len(problem.steps)))
    wrong = [_changed(step, rng) for step in problem.steps[place:]]
    return written([*problem.steps[:place], *wrong], _changed(problem.answer, rng))


def _changed(text: str, rng: np.random.Generator) -> str:
    """The text with one digit or letter replaced, of those behind ``=`` where there is one: by its neighbour or by any.

    Errors of models are near misses more often than not.
    """
    words = text.split()
    result = len(words) - words[::-1].index("=") if "=" in words else 0
    places = [i for i in range(result, len(words)) if words[i] in DIGITS or words[i] in LETTERS]
    if places:
        i = places[int(rng.integers(len(places)))]
        kind = DIGITS if words[i] in DIGITS else LETTERS
        away = int(rng.integers(1, len(kind))) if rng.random() < 0.5 else int(rng.choice([-1, 1]))
        words[i] = kind[(kind.index(words[i]) + away) % len(kind)]
    return " ".join(words)


def row(
    problem: Problem, others: Sequence[Problem], kind: str, style: str, rng: np.random.Generator
) -> tuple[str, str]:
    """Prompt and response of one row of a kind: ``plain`` or one of :data:`CONDITIONED`."""
    response = solution(problem, style)
    if kind == "plain":
        return contexts.plain(problem), response
    if kind == "reference":
        return contexts.with_reference(problem), response
    if kind == "demonstration":
        same = [other for other in others if other.family == problem.family and other.key != problem.key]
        other = same[int(rng.integers(len(same)))] if same else others[0]
        return contexts.with_demonstration(problem, other), response
    if kind == "rule":
        rule = sorted(RULES)[int(rng.integers(len(RULES)))]
        return contexts.plain(problem, rule), solution(problem, style, rule)
    good = kind == "revision" and rng.random() < 0.3
    attempt = problem.solution if good else corrupted(problem, rng)
    verdict = verify(problem, attempt)
    if kind == "revision":
        return contexts.with_attempt(problem, attempt, verdict.correct), response
    return contexts.with_critique(problem, attempt, verdict.feedback), response


def rows(
    problems: Sequence[Problem], count: int, plain_share: float, style: str, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """``count`` pairs of prompt and response, ``plain_share`` of them plain questions."""
    kinds, chances = list(CONDITIONED), np.array(list(CONDITIONED.values()))
    made = []
    for i in range(count):
        problem = problems[i % len(problems)]
        kind = "plain" if rng.random() < plain_share else kinds[int(rng.choice(len(kinds), p=chances / chances.sum()))]
        made.append(row(problem, problems[max(0, i - 40) % len(problems) :][:80], kind, style, rng))
    return made
