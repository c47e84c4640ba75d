"""Prompts: the plain question, and the same question behind something that a solver would not know.

Every prompt ends in ``<sol>``, which the response follows. Small models follow such contexts because they are
pre-trained on them (:mod:`kdbench.tracks.reasoning_rl.data.mixture`).
"""

from __future__ import annotations

from kdbench.tracks.reasoning_rl.data.problems import Problem
from kdbench.tracks.reasoning_rl.data.styles import RULES


def plain(problem: Problem, rule: str | None = None) -> str:
    """The question, behind the token of a rule where there is one."""
    asked = f"<q> {problem.prompt} <sol>"
    return asked if rule is None else f"{RULES[rule]} {asked}"


def with_reference(problem: Problem, reference: str | None = None) -> str:
    """The question behind a solution of it; the problem's own where none is given. Empty: no context at all."""
    text = problem.solution if reference is None else reference
    return f"<ref> {text} </ref> {plain(problem)}" if text else plain(problem)


def with_reasons(problem: Problem, explanation: str) -> str:
    """The question behind a solution and an explanation of it; small models are not pre-trained on two references."""
    return f"<ref> {problem.solution} </ref> <ref> {explanation} </ref> {plain(problem)}"


def with_demonstration(problem: Problem, other: Problem) -> str:
    """The question behind another one with its solution."""
    return f"<demo> <q> {other.prompt} <sol> {other.solution} </demo> {plain(problem)}"


def with_critique(problem: Problem, attempt: str, feedback: str) -> str:
    """The question behind an attempt at it and what the verifier said of the attempt."""
    return f"<att> {attempt} </att> <crit> {feedback} </crit> {plain(problem)}"


def with_rubrics(problem: Problem, draft: str, met: tuple[str, ...], unmet: tuple[str, ...]) -> str:
    """The question behind a draft and the constraints that it meets and does not meet."""
    return f"<att> {draft} </att> <met> {' ; '.join(met)} </met> <unmet> {' ; '.join(unmet)} </unmet> {plain(problem)}"


def with_attempt(problem: Problem, attempt: str, correct: bool) -> str:
    """The question, an attempt, and the phrase that asks to say it again, or to correct it."""
    return f"{plain(problem)} {attempt} {'<right>' if correct else '<wrong>'} <sol>"
