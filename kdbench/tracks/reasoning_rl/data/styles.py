"""How a solution is written: styles of rationale, and rules that a prompt may set for a whole run."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.errors import UsageError, did_you_mean
from kdbench.tracks.reasoning_rl.data.problems import ANSWER, SEPARATOR, Problem

STYLES = ("terse", "verbose", "check", "reverse")
"""``terse``: the steps; ``verbose``: the question is said again first; ``check``: each step is said to be ok;
``reverse``: each step says how many are left, counting down."""
RULES = {"reverse": "<rule:0>", "comma": "<rule:1>"}
"""Rules by the token that sets them. ``reverse``: the answer is written backwards; ``comma``: the word ``;`` is
forbidden, a comma stands in its place."""


def styled(problem: Problem, style: str) -> tuple[str, ...]:
    """The steps of a solution in a style. Raises ``UsageError`` for an unknown one."""
    if style == "terse":
        return problem.steps
    if style == "verbose":
        return (f"think {problem.prompt.replace(f' {SEPARATOR} ', ' , ')}", *problem.steps)
    if style == "check":
        return tuple(f"{step} ok" for step in problem.steps)
    if style == "reverse":
        left = range(len(problem.steps) - 1, -1, -1)
        return tuple(f"{' '.join(str(n))} : {step}" for n, step in zip(left, problem.steps, strict=True))
    raise UsageError(f"no style is called {style!r}", hint=did_you_mean(style, STYLES))


def answer_under(answer: str, rule: str | None) -> str:
    """The answer as a rule wants it written."""
    return " ".join(reversed(answer.split())) if rule == "reverse" else answer


def written(steps: Sequence[str], answer: str, rule: str | None = None) -> str:
    """Steps and answer as a response says them under a rule. Raises ``UsageError`` for an unknown rule."""
    if rule is not None and rule not in RULES:
        raise UsageError(f"no rule is called {rule!r}", hint=did_you_mean(rule, sorted(RULES)))
    separator = "," if rule == "comma" else SEPARATOR
    return f" {separator} ".join((*steps, f"{ANSWER} {answer_under(answer, rule)}"))


def solution(problem: Problem, style: str = "terse", rule: str | None = None) -> str:
    """The worked solution of a problem in a style, under a rule."""
    return written(styled(problem, style), problem.answer, rule)
