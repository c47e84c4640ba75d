"""Findings on claims as text: for terminals and for pages in Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdbench.errors import plain
from kdbench.leaderboard.findings import Conclusion, Finding
from kdbench.leaderboard.render import Table, markdown
from kdbench.leaderboard.statistics import Estimate
from kdbench.leaderboard.verdicts import VERDICTS, Verdict

if TYPE_CHECKING:
    from kdbench.registry import Registry

SIGN = {"reproduced": "✓", "not reproduced": "✗", "undecided": "?"}
"""Of each verdict, for narrow tables."""

MIXED = "mixed code"
"""In a table, of findings whose jobs ran with different versions of kdbench's own code; :func:`mixture` says more."""

RULE = (
    "verdicts are about our implementations, at this scale. reproduced: the whole 95 % interval, paired over all "
    "seeds that ran, is on the claim's side; not reproduced: it is on the other, or the method diverged or overspent "
    "on most seeds; undecided: anything else. effect: mean difference, positive where the subject is better (Student "
    "t), or ratio of means (Fieller). intervals are not corrected for the number of claims: of 40 claims that are "
    "just true, one reads not reproduced by chance. a paper is reproduced if all its claims are on all tasks, and not "
    "if any is not"
)
"""What a table of findings needs to be read."""


def statement(finding: Finding) -> str:
    """What is claimed, as a formula in the metric's own unit: ``taid ≥ kd_fkl - 0.02``."""
    claim, a, b = finding.claim, finding.subject, finding.reference
    up = finding.direction == "max"
    if claim.kind == "ratio":
        return plain(f"{a} / {b} {'≥' if up else '≤'} {claim.margin:g}")
    sign = {"superior": "><", "noninferior": "≥≤"}[claim.kind][not up]
    # a difference that superiority asks for goes the good way from the reference, one that is allowed the bad way
    toward = claim.margin * finding.factor * (1 if up == (claim.kind == "superior") else -1)
    shift = "" if toward == 0 else f" {'+' if toward > 0 else '-'} {abs(toward):g}"
    return plain(f"{a} {sign} {b}{shift}")


def effect(finding: Finding) -> tuple[str, str]:
    """Effect and interval with the digits that the interval allows; empty where there is none."""
    found = finding.judgement.effect
    if found is None:
        return "", ""
    sign = "" if finding.claim.kind == "ratio" else "+"
    mean = found.mean * finding.factor
    if found.low is None or found.high is None:
        return f"{mean:{sign}.4g}", ""
    decimals = _decimals(found, finding.factor)
    if decimals is None:
        return f"{mean:{sign}.4g}", f"{found.low * finding.factor:{sign}.4g} to {found.high * finding.factor:{sign}.4g}"
    low, high = (f"{end * finding.factor:{sign}.{decimals}f}" for end in (found.low, found.high))
    return f"{mean:{sign}.{decimals}f}", f"{low} to {high}"


def _decimals(found: Estimate, factor: float) -> int | None:
    """Decimals that show two digits of half the interval; None for an interval without width, or a tiny one."""
    half = (found.half or 0.0) * factor
    if not 1e-6 < half < math.inf:
        return None
    return max(1 - math.floor(math.log10(half)), 0)


def findings_table(findings: Sequence[Finding], options: str = "") -> Table:
    """A row per finding; ``options`` is added to the commands, such as the results folder."""
    columns = ["verdict", "method", "claim", "metric", "task", "effect", "95 % interval", "seeds", "why", "check"]
    rows: list[list[object]] = []
    for finding in findings:
        unit = f" ({finding.unit})" if finding.unit else ""
        rows.append(
            [
                f"{SIGN[finding.verdict]} {finding.verdict}",
                plain(finding.method),
                f"{finding.number}: {statement(finding)}",
                plain(f"{finding.claim.metric}{unit}"),
                plain(finding.title if finding.spec_digest else finding.task),
                *effect(finding),
                finding.judgement.n,
                plain("; ".join([*finding.judgement.notes, *([MIXED] if finding.mixed else [])])),
                plain(finding.command and finding.command + options),
            ]
        )
    return columns, rows, ["effect", "95 % interval", "seeds"]


def mixture(findings: Sequence[Finding]) -> str:
    """What ``MIXED`` says in a table of these findings; empty where it is nowhere."""
    mixed = [finding for finding in findings if finding.mixed]
    if not mixed:
        return ""
    parts = sorted({part for finding in mixed for part in finding.mixed})
    shown = ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
    count = f"{len(mixed)} finding{'s' * (len(mixed) != 1)}"
    return plain(f"{MIXED}: the jobs of {count} ran with different versions of {shown}; --json says of which")


def conclusions_table(conclusions: Sequence[Conclusion], registry: Registry, options: str = "") -> Table:
    """A row per paper; ``options`` as in :func:`findings_table`."""
    columns = ["verdict", "method", "year", "made from", *VERDICTS, "check"]
    rows: list[list[object]] = []
    for conclusion in conclusions:
        card = registry.methods[conclusion.method].card
        command = next((finding.command for finding in conclusion.findings if finding.command), "")
        rows.append(
            [
                f"{SIGN[conclusion.verdict]} {conclusion.verdict}",
                plain(conclusion.method),
                getattr(card, "year", ""),
                getattr(card, "source", ""),
                *(conclusion.counts[verdict] for verdict in VERDICTS),
                plain(command and command + options),
            ]
        )
    return columns, rows, ["year", *VERDICTS]


def summary(conclusions: Sequence[Conclusion]) -> str:
    """How many papers there are of each verdict, and how many of them nobody tried."""
    counts: Counter[Verdict] = Counter(conclusion.verdict for conclusion in conclusions)
    papers = len(conclusions)
    untried = sum(not conclusion.ran for conclusion in conclusions)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{papers} paper{'s' * (papers != 1)} with claims: {parts} ({untried} of them without any job)"


def claims_markdown(findings: Sequence[Finding], options: str = "") -> str:
    """Findings in Markdown, with the rule; empty where there is none. ``options`` as in :func:`findings_table`."""
    if not findings:
        return ""
    columns, rows, right = findings_table(findings, options)
    parts = [markdown(columns, rows, right), f"{mixture(findings)}\n" if mixture(findings) else "", f"{RULE}\n"]
    return "\n".join(filter(None, parts))


def papers_markdown(
    conclusions: Sequence[Conclusion], findings: Sequence[Finding], registry: Registry, options: str = ""
) -> str:
    """Papers in Markdown, then the findings on them; ``options`` as in :func:`findings_table`."""
    columns, rows, right = conclusions_table(conclusions, registry, options)
    parts = [f"{summary(conclusions)}\n", markdown(columns, rows, right), claims_markdown(findings, options)]
    return "\n".join(filter(None, parts))
