"""Answers of free-text problems: where a response states one, and when two are the same."""

from __future__ import annotations

import re
from fractions import Fraction

MARKED = re.compile(r"####\s*([^\n]+)")
"""How data sets of word problems mark the answer at the end of a solution."""
SAID = re.compile(r"(?:final answer|answer)\s*(?:is|:)\s*:?\s*([^\n]+?)\s*\.?\s*(?:\n|$)", re.IGNORECASE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?")
WRAPPERS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\{([^{}]*)\}")
FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")


def boxed(text: str) -> str | None:
    r"""What is in the last ``\boxed{...}`` of a text, its braces balanced; None where there is none or it is open."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin, depth = start + len("\\boxed{"), 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return None


def stated(text: str) -> str | None:
    """The answer that a response states: boxed, marked with ``####``, or said; None where it states none."""
    found = boxed(text)
    if found is not None:
        return found.strip()
    for pattern in (MARKED, SAID):
        matches = pattern.findall(text)
        if matches:
            return str(matches[-1]).strip()
    return None


def normal(answer: str) -> str:
    """An answer without the ways of writing that do not change it: spaces, dollars, units of mark-up, ``\\frac``."""
    text = answer.strip().rstrip(".").replace("$", "").replace("\\!", "").replace("\\,", "").replace("\\%", "")
    text = (
        text.replace("\\left", "")
        .replace("\\right", "")
        .replace("%", "")
        .replace("^{\\circ}", "")
        .replace("^\\circ", "")
    )
    text = FRACTION.sub(r"(\1)/(\2)", WRAPPERS.sub(r"\1", text))
    text = re.sub(r"\((-?\d+)\)/\((-?\d+)\)", r"\1/\2", text)
    return re.sub(r"\s+", "", text).lower()


def number(answer: str) -> Fraction | None:
    """The value of an answer that is one number, with commas between thousands, or a fraction; else None."""
    text = normal(answer)
    if not NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def same(answer: str, gold: str) -> bool:
    """Whether two answers are equal: as numbers where both are, else as normalised texts.

    >>> same("\\\\frac{1}{2}", "0.5"), same("1,000", "1000"), same("x + 1", "x+1"), same("2", "3")
    (True, True, True, False)
    """
    first, second = number(answer), number(gold)
    if first is not None and second is not None:
        return first == second
    return normal(answer) == normal(gold)
