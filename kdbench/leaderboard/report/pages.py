"""What each kind of page shows: contexts for the templates, made of what was read once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdbench import __version__
from kdbench.errors import plain
from kdbench.leaderboard import claimtext, overall, render
from kdbench.leaderboard.board import Board, Row
from kdbench.leaderboard.findings import Conclusion, Finding, conclude
from kdbench.leaderboard.report import names
from kdbench.leaderboard.report.data import FailedJob, Material
from kdbench.leaderboard.report.drawings import method_charts, task_charts
from kdbench.leaderboard.report.job_page import job_context
from kdbench.leaderboard.report.method_page import Choices, context_of, verdict_of
from kdbench.leaderboard.report.samples import sample_file
from kdbench.leaderboard.verdicts import VERDICTS

if TYPE_CHECKING:
    from kdbench.registry import Registry

FINDINGS = 150
"""Findings that the page of claims lists; of more, the pages of the methods show theirs."""
FAILED = 200
"""Failed jobs that a page lists."""
SHOWN = 10
"""Methods of a track that the overview shows."""

COST_NAMES = {
    "train_seconds": "train time",
    "teacher_queries": "teacher queries",
    "generated_tokens": "generated tokens",
    "flops": "FLOPs",
    "parameters": "parameters",
    "peak_rss_bytes": "peak memory",
}
"""Costs of which tables have a column where any job has an entry, with their headers."""


class Page(NamedTuple):
    """A page that is to be written."""

    path: str
    """In the site."""
    template: str
    context: dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """A board in a line."""

    board: Board
    page: str
    leader: Row | None
    """The first row that is neither floor nor ceiling."""
    methods: int
    """Rows, floor and ceiling aside."""
    better: int
    """Of them, those whose gap closed is above 0 with its whole interval."""
    worse: int
    """Those below 0."""
    failed: int
    """Jobs."""


def summary(board: Board, page: str) -> Summary:
    """What an overview says about a board."""
    roles = {f"{board.track}/{board.floor}", f"{board.track}/{board.ceiling}"}
    rows = [row for row in board.rows if row.method not in roles]
    gaps = [row.gap for row in rows if row.gap is not None]
    return Summary(
        board=board,
        page=page,
        leader=None if board.refused else next((row for row in rows if row.score is not None), None),
        methods=len(rows),
        better=sum(gap.low is not None and gap.low > 0 for gap in gaps),
        worse=sum(gap.high is not None and gap.high < 0 for gap in gaps),
        failed=sum(row.n_failed for row in board.rows),
    )


class Site:
    """All pages of a site."""

    def __init__(
        self, material: Material, registry: Registry, results: Path, sections: Mapping[str, str] | None = None
    ) -> None:
        """``sections``: title to Markdown, as extensions add them to the overview."""
        self.material = material
        self.registry = registry
        self.results = results
        self.sections = sections or {}
        self.version = __version__
        self.most_failed = FAILED
        self._choices: Choices = {}
        self.tasks = names.task_pages(material.boards)
        self.rows = material.rows()
        self.standings = overall.standings(material.boards)
        self.methods = sorted({*self.rows, *(job.method for job in material.failed)})
        self.failed: dict[str, list[FailedJob]] = defaultdict(list)
        self.failed_of: dict[str, list[FailedJob]] = defaultdict(list)
        for job in material.failed:
            self.failed[job.spec_digest].append(job)
            self.failed_of[job.method].append(job)
        self.findings: dict[str, list[Finding]] = defaultdict(list)
        for finding in material.findings:
            self.findings[finding.method].append(finding)

    @cached_property
    def tracks(self) -> list[str]:
        return list(dict.fromkeys(board.track for board in self.material.boards))

    @cached_property
    def conclusions(self) -> list[Conclusion]:
        return conclude(self.material.findings)

    @property
    def jobs_text(self) -> str:
        """``1,150 jobs``."""
        return f"{self.material.jobs:,} job{'s' * (self.material.jobs != 1)}"

    def pages(self) -> Iterator[Page]:
        """Every page, one at a time."""
        yield self._page(names.INDEX, "index.html", "Results", [], **self._index())
        for track in self.tracks:
            yield self._page(names.track_page(track), "track.html", track, [], **self._track(track))
        for board in self.material.boards:
            crumbs = [(board.track, names.track_page(board.track))]
            yield self._page(self.tasks[board.spec_digest], "task.html", board.title, crumbs, **self._task(board))
        for method in self.methods:
            context = self._method(method)
            crumbs = [(context["track"], names.track_page(context["track"]))]
            yield self._page(names.method_page(method), "method.html", method, crumbs, **context)
        for job in self.material.failed:
            crumbs = [
                (job.method.split("/", 1)[0], names.track_page(job.method.split("/", 1)[0])),
                (job.label or job.method, names.method_page(job.method)),
            ]
            context = job_context(self.results, job)
            yield self._page(names.job_page(job.id), "job.html", f"Failed job {job.id}", crumbs, **context)
        yield self._page(names.CLAIMS, "claims.html", "Claims of papers", [], **self._claims())
        yield self._page(names.COMPARE, "compare.html", "Compare two methods", [])

    def _page(self, path: str, template: str, title: str, crumbs: Sequence[tuple[str, str]], **context: Any) -> Page:
        root = "../" * path.count("/")
        common = {"site": self, "path": path, "root": root, "title": title, "crumbs": crumbs, "charts": []}
        return Page(path, template, common | context)

    # --- where things are ---------------------------------------------------------------------------------------------

    def method_page(self, method: str) -> str:
        """Path of a method's page; empty where it has none."""
        return names.method_page(method) if method in self._with_page else ""

    @cached_property
    def _with_page(self) -> frozenset[str]:
        return frozenset(self.methods)

    def task_page(self, spec_digest: str) -> str:
        """Path of a task's page; empty where it has none."""
        return self.tasks.get(spec_digest, "")

    def track_page(self, track: str) -> str:
        return names.track_page(track)

    def job_page(self, id: str) -> str:
        return names.job_page(id)

    # --- pages --------------------------------------------------------------------------------------------------------

    def _summaries(self, track: str) -> list[Summary]:
        return [summary(board, self.tasks[board.spec_digest]) for board in self.material.boards if board.track == track]

    def _title(self, track: str) -> str:
        known = self.registry.tracks.get(track)
        return "" if known is None else known.title

    def _index(self) -> dict[str, Any]:
        return {
            "tracks": [
                {
                    "name": track,
                    "title": self._title(track),
                    "tasks": self._summaries(track),
                    "standings": [table for table in self.standings if table.track == track],
                }
                for track in self.tracks
            ],
            "shown": SHOWN,
            "verdicts": self._verdicts(self.conclusions),
            "sections": self.sections,
            "standing_rule": _standing_rule(),
        }

    def _track(self, track: str) -> dict[str, Any]:
        conclusions = [conclusion for conclusion in self.conclusions if conclusion.method.split("/")[0] == track]
        return {
            "track": track,
            "about": self._title(track),
            "tasks": self._summaries(track),
            "standings": [table for table in self.standings if table.track == track],
            "verdicts": self._verdicts(conclusions),
            "standing_rule": _standing_rule(),
        }

    def _verdicts(self, conclusions: Sequence[Conclusion]) -> dict[str, int]:
        """How many papers with any job there are of each verdict."""
        counts = Counter(conclusion.verdict for conclusion in conclusions if conclusion.ran)
        return {verdict: counts[verdict] for verdict in VERDICTS}

    def _task(self, board: Board) -> dict[str, Any]:
        costs = [name for name in COST_NAMES if any(row.costs.get(name) for row in board.rows)]
        claimed = self._claimed_on(board)
        known = self._entry(board.task)
        return {
            "board": board,
            "about": known,
            "factor": render.factor_of(board),
            "unit": f" ({board.unit})" if board.unit else "",
            "costs": costs,
            "cost_names": COST_NAMES,
            "verdicts": {id(row): verdict_of(claimed[row.method], board, row) for row in board.rows} if claimed else {},
            "row_id": id,
            "letters": any(row.ties for row in board.rows),
            "rules": render.rules(board),
            "rule": render.RULE,
            "header": render.header(board).removeprefix(f"{plain(board.title)}: "),
            "spec": self.material.specs.get(board.spec_digest, {}),
            "failed": self.failed.get(board.spec_digest, []),
            **task_charts(board, lambda row: "../" + names.method_page(row.method)),
        }

    def _claimed_on(self, board: Board) -> dict[str, list[Finding]]:
        """Findings on a board by method; empty where there is none."""
        found: dict[str, list[Finding]] = defaultdict(list)
        for finding in self.material.findings:
            if finding.spec_digest == board.spec_digest:
                found[finding.method].append(finding)
        return found

    def _entry(self, task: str) -> str:
        return next((entry.title for entry in self.registry.tasks() if entry.name == task), "")

    def _method(self, method: str) -> dict[str, Any]:
        context = context_of(self.registry, method, self.rows.get(method, []), self.findings[method], self._choices)
        return context | {
            **method_charts(context["results"], self.material.curves.get(method), self.tasks),
            "failed": self.failed_of.get(method, []),
            "origins": self.material.origins.get(method, []),
            "suites": self.material.suites.get(method, []),
            "samples": self.material.samples.get(method, []),
            "cost_names": {
                name: shown
                for name, shown in COST_NAMES.items()
                if any(result.row.costs.get(name) for result in context["results"])
            },
            "statement": claimtext.statement,
            "effect": claimtext.effect,
            "claims_rule": claimtext.RULE,
            "sample_file": sample_file,
        }

    def _claims(self) -> dict[str, Any]:
        ran = [conclusion for conclusion in self.conclusions if conclusion.ran]
        findings = [finding for finding in self.material.findings if finding.jobs]
        return {
            "conclusions": ran,
            "untried": len(self.conclusions) - len(ran),
            "verdicts": self._verdicts(self.conclusions),
            "cards": {method.key: method.card for method in self.registry.methods.values()},
            "findings": findings if len(findings) <= FINDINGS else [],
            "left_out": len(findings) if len(findings) > FINDINGS else 0,
            "statement": claimtext.statement,
            "effect": claimtext.effect,
            "claims_rule": claimtext.RULE,
        }


def _standing_rule() -> str:
    from kdbench.leaderboard.aggregate import RULE

    return RULE
