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

CONDITIONED = {"reference": 0.3, "critique": 0.35, "revision": 0.15, "demonstration": 0.05, "rule": 0.15}
"""How often each context is drawn where one is."""
DIGITS = "0123456789"


def corrupted(problem: Problem, rng: np.random.Generator) -> str:
    """A solution that goes wrong: one word of one step and one of the answer are others of their kind."""
    steps = list(problem.steps)
    place = int(rng.integers(len(steps)))
    steps[place] = _changed(steps[place], rng)
    return written(steps, _changed(problem.answer, rng))


def _changed(text: str, rng: np.random.Generator) -> str:
    """The text with its last word that is a digit or a letter replaced by another."""
    words = text.split()
    for i in reversed(range(len(words))):
        kind = DIGITS if words[i] in DIGITS else "abcdefghijklmnopqrstuvwxyz" if len(words[i]) == 1 else ""
        if words[i] in kind and kind:
            words[i] = kind[(kind.index(words[i]) + int(rng.integers(1, len(kind)))) % len(kind)]
            break
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
