"""A safe interpreter of stack programs: ``push`` a number or an input, ``add``, ``mul``, ``mod``, ``swap``."""

from __future__ import annotations

from collections.abc import Sequence

OPERATIONS = {"+": "add", "*": "mul", "mod": "mod"}
"""Instruction for each symbol of a formula."""
LARGEST = 20
"""Inputs are below this."""
BOUND = 10**9
"""A value beyond it ends the run."""


def run(program: Sequence[str], x: int, y: int) -> int | None:
    """What is alone on the stack at the end, or None: an unknown word, an empty stack, more left, too large a value."""
    stack: list[int] = []
    words = iter(program)
    for word in words:
        if word == "push":
            value = {"x": x, "y": y}.get(term := next(words, ""))
            if value is None and not (len(term) == 1 and term.isdigit()):
                return None
            stack.append(int(term) if value is None else value)
            continue
        if word not in ("add", "mul", "mod", "swap") or len(stack) < 2:
            return None
        b, a = stack.pop(), stack.pop()
        if word == "swap":
            stack += [b, a]
            continue
        if word == "mod" and b == 0:
            return None
        stack.append(a + b if word == "add" else a * b if word == "mul" else a % b)
        if abs(stack[-1]) > BOUND:
            return None
    return stack[0] if len(stack) == 1 else None
