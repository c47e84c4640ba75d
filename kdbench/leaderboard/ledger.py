"""The ledger of claims: per track, how many papers and how many claims came out how."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from kdbench.errors import plain
from kdbench.leaderboard.findings import Conclusion, Finding
from kdbench.leaderboard.render import Table, markdown
from kdbench.leaderboard.verdicts import VERDICTS, Verdict

Standing = Literal[Verdict, "not run"]
STANDINGS: tuple[Standing, ...] = (*VERDICTS, "not run")

PAPERS, CLAIMS = "papers", "claims on tasks"
TOTAL = "all"

RULE = (
    "verdicts are about our implementations, at this scale, by the rules of kdbench claims. a claim counts once for "
    "each of its tasks. undecided: jobs ran, but their interval has values on both sides of the claim, or they are too "
    "few, or some failed. not run: of a claim, the jobs of a side; of a paper, all jobs of its claims"
)
"""What a ledger needs to be read."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    track: str
    """``TOTAL`` for all tracks together."""
    what: str
    """``PAPERS`` or ``CLAIMS``."""
    counts: Mapping[Standing, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def record(self) -> dict[str, Any]:
        """A flat row for programs."""
        counts = {name.replace(" ", "_"): self.counts.get(name, 0) for name in STANDINGS}
        return {"track": self.track, "what": self.what, **counts, "total": self.total}


def of_paper(conclusion: Conclusion) -> Standing:
    """How a paper came out."""
    return conclusion.verdict if conclusion.ran else "not run"


def of_claim(finding: Finding) -> Standing:
    """How a claim came out on a task."""
    return finding.verdict if finding.judgement.ran else "not run"


def ledger(conclusions: Iterable[Conclusion]) -> list[Entry]:
    """Two entries, of papers and of their claims, for each track in the order of the conclusions; then for all."""
    counts: dict[tuple[str, str], Counter[Standing]] = defaultdict(Counter)
    tracks: dict[str, None] = {}
    for conclusion in conclusions:
        tracks[conclusion.method.partition("/")[0]] = None
        for track in (conclusion.method.partition("/")[0], TOTAL):
            counts[track, PAPERS][of_paper(conclusion)] += 1
            counts[track, CLAIMS].update(map(of_claim, conclusion.findings))
    shown = [*tracks, *([TOTAL] if len(tracks) > 1 else [])]
    return [Entry(track, what, counts[track, what]) for track in shown for what in (PAPERS, CLAIMS)]


def table(entries: Sequence[Entry]) -> Table:
    """For people: a row per track with its papers, how they came out, then its claims and how those did."""
    by_track: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_track[entry.track].append(entry)
    columns = ["track"] + [name for what in (PAPERS, CLAIMS) for name in (what, *STANDINGS)]
    rows: list[list[object]] = [[plain(track), *chain(*map(_cells, own))] for track, own in by_track.items()]
    return columns, rows, columns[1:]


def _cells(entry: Entry) -> list[object]:
    return [entry.total, *(entry.counts.get(name, 0) for name in STANDINGS)]


def to_markdown(entries: Sequence[Entry]) -> str:
    """The ledger in Markdown, with the rule."""
    return f"{markdown(*table(entries))}\n{RULE}\n"
