"""The verifier: whether a response is right, which step goes wrong first, which constraints are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kdbench.tracks.reasoning_rl.data.problems import ANSWER, SEPARATOR, Problem
from kdbench.tracks.reasoning_rl.data.programs import run
from kdbench.tracks.reasoning_rl.data.styles import STYLES, answer_under, styled


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of one response."""

    correct: bool
    format_ok: bool
    """There is one answer, at the end."""
    parsed: str | None
    """The answer that was found."""
    step_ok: tuple[bool, ...] = ()
    """Of each step that was written, whether it is the right one in its place."""
    first_bad: int | None = None
    """The first step that is wrong or missing, from 0; None where all are right."""
    rubrics: Mapping[str, bool] = field(default_factory=dict)
    """Constraints of the problem, and whether the answer meets each."""
    feedback: str = ""
    """For the model to read: the first wrong step and what belongs in its place, or ``ok``."""


def split_response(text: str, separator: str = SEPARATOR) -> tuple[list[str], list[str]]:
    """Steps, and the words of every answer that is marked: what follows each ``ans`` up to the next separator."""
    steps, answers = [], []
    for part in " ".join(text.split()).split(f" {separator} "):
        words = part.split()
        if words[:1] == [ANSWER]:
            answers.append(" ".join(words[1:]))
        elif words:
            steps.append(part)
    return steps, answers


def meets(rule: str, answer: Sequence[str]) -> bool:
    """Whether the words of an answer meet one constraint of the family ``rules``."""
    name, value = rule.split()
    if name == "least":
        return len(answer) >= int(value)
    return {"first": answer[:1], "last": answer[-1:], "has": [w for w in answer if w == value][:1]}[name] == [value]


def right(problem: Problem, answer: str) -> bool:
    """Whether an answer solves a problem: by its words, by its constraints, or by running it on the hidden inputs."""
    if problem.family == "rules":
        words = answer.split()
        return (
            bool(words) and all(len(word) == 1 for word in words) and all(meets(rule, words) for rule in problem.steps)
        )
    if problem.cases:
        return all(run(answer.split(), *inputs) == result for *inputs, result in problem.cases)
    return answer == problem.answer


def verify(problem: Problem, text: str, rule: str | None = None) -> Verdict:
    """Check a response (without the end token) to a problem, under a rule where the prompt set one.

    Right is a response with exactly one answer, at its end, that solves the problem; under ``comma`` the word ``;``
    must not occur. Steps are compared with those of the style that fits best and do not decide.
    """
    separator = "," if rule == "comma" else SEPARATOR
    steps, answers = split_response(text, separator)
    ends = ANSWER in text.split() and text.split()[::-1].index(ANSWER) == len(answers[-1].split()) if answers else False
    format_ok = len(answers) == 1 and bool(answers[0]) and ends
    if rule == "comma":
        format_ok = format_ok and SEPARATOR not in text.split()
    parsed = answers[-1] if answers else None
    plain = None if parsed is None else answer_under(parsed, rule)
    correct = format_ok and plain is not None and right(problem, plain)
    rubrics = {}
    if problem.family == "rules":
        rubrics = {rule_: plain is not None and meets(rule_, plain.split()) for rule_ in problem.steps}
    gold, step_ok = _best_style(problem, steps)
    first_bad = next((i for i, ok in enumerate(step_ok) if not ok), None)
    if first_bad is None and len(steps) < len(gold):
        first_bad = len(steps)
    if correct:
        feedback = "ok"
    elif first_bad is None or first_bad >= len(gold):
        feedback = f"no : {ANSWER} {answer_under(problem.answer, rule)}"
    else:
        feedback = f"no {first_bad + 1} : {gold[first_bad]}"
    return Verdict(correct, format_ok, parsed, step_ok, first_bad, rubrics, feedback)


def _best_style(problem: Problem, steps: Sequence[str]) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """Gold steps in the style that most of the written ones agree with, and which of them do."""
    best: tuple[tuple[str, ...], tuple[bool, ...]] = (problem.steps, ())
    for i, style in enumerate(STYLES):
        gold = styled(problem, style)
        found = tuple(n < len(gold) and step == gold[n] for n, step in enumerate(steps))
        if i == 0 or sum(found) > sum(best[1]):
            best = (gold, found)
    return best


def reward(verdict: Verdict, truncated: bool, kind: str = "binary") -> float:
    """The outcome reward in [0, 1]: ``binary``, ``binary+format`` (0.9 and 0.1) or ``rubric`` (share of them met).

    A response without an end gets 0. Problems without constraints have one rubric, that they are right.
    """
    if truncated:
        return 0.0
    if kind == "binary+format":
        return 0.9 * verdict.correct + 0.1 * verdict.format_ok
    if kind == "rubric" and verdict.rubrics:
        return sum(verdict.rubrics.values()) / len(verdict.rubrics)
    return float(verdict.correct)
