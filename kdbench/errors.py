"""Every error that kdbench raises on purpose.

Anything a user can cause by input derives from :class:`UsageError`: the command line prints it as one
message without a traceback and exits with code 2. Anything that ends one job derives from
:class:`JobError`: the worker records it in the outcome under the class's ``status``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with an input, where it stands, and what to do about it."""

    place: str
    """``file:line:column`` (1-based), a path, or a command-line option; empty where there is no place."""
    message: str
    """What is wrong and what was expected."""
    hint: str = ""
    """What to do; empty where nothing better than the message can be said."""

    def __str__(self) -> str:
        head = f"{self.place}: {self.message}" if self.place else self.message
        return f"{head} ({self.hint})" if self.hint else head


class KdbenchError(Exception):
    """Base of every error raised on purpose."""


class UsageError(KdbenchError):
    """Bad input from a person: printed as one line per problem, exit code 2."""

    def __init__(self, message: str | Sequence[Problem], *, place: str = "", hint: str = "") -> None:
        self.problems: list[Problem] = [Problem(place, message, hint)] if isinstance(message, str) else list(message)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class CacheError(KdbenchError):
    """A cache entry could not be made; entries that are damaged are made anew, never reported as this."""


class JobError(KdbenchError):
    """Ends one job; ``status`` is what its outcome says."""

    status = "failed"


class TestDataError(JobError):
    """``train`` reached for test data."""

    __test__ = False  # not a pytest class, whatever its name


class ArtifactError(JobError):
    """``train`` returned something that its track does not evaluate, ``None`` included."""


class ContractError(JobError):
    """A hook broke its contract: it changed an official metric, the teacher, or returned the wrong type."""


class OverBudget(JobError):
    """A method tried to spend more than a hard limit of its task allows."""

    status = "over_budget"


class Diverged(JobError):
    """A loss, a metric or a parameter became NaN or infinite."""

    status = "diverged"


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems by file, line and column, each once."""
    return sorted(dict.fromkeys(problems), key=lambda problem: _position(problem.place))


def _position(place: str) -> tuple[str, int, int]:
    file, _, rest = place.partition(":")
    line, column, *_ = [*(int(part) for part in rest.split(":") if part.isdigit()), 0, 0]
    return file, line, column


def did_you_mean(word: str, known: Sequence[str], *, label: str = "known") -> str:
    """A suggestion for an unknown word: the close matches, or else what is known, cut to a readable length."""
    close = get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    shown = sorted(known)
    if not shown:
        return f"nothing is {label}"
    tail = f", ... ({len(shown)} in all)" if len(shown) > 12 else ""
    return f"{label}: " + ", ".join(shown[:12]) + tail


def plain(value: object) -> str:
    """Text without control characters: what a terminal could take for a command is shown as an escape."""
    text = str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
