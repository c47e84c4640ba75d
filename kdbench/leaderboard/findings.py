"""Findings: what outcomes say about single claims on single tasks, and what those come to for a paper."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kdbench.cards import Compare
from kdbench.catalog import DEFAULT_SCALE
from kdbench.leaderboard.statistics import Direction
from kdbench.leaderboard.verdicts import Judgement, Verdict


@dataclass(frozen=True)
class Finding:
    """What the outcomes say about one claim on one task."""

    method: str
    """``track/slug`` of the card that makes the claim."""
    number: int
    """Which of the card's claims, from 1."""
    claim: Compare
    task: str
    """``track/name``; what the claim names where no task could be found."""
    scale: str
    spec_digest: str
    """Of the fully resolved task; empty where there is none."""
    standard: bool
    """Whether the task is defined as it comes, not as a suite changed it or an earlier version had it."""
    subject: str
    """Label: the method with the parameters that differ from its defaults."""
    reference: str
    """As ``subject``; a number for a claim about one."""
    direction: Direction
    unit: str
    factor: float
    """100 where a fraction is shown in percent, otherwise 1."""
    jobs: int
    """Jobs of both sides that came to an end."""
    judgement: Judgement
    mixed: tuple[str, ...] = ()
    """Parts of kdbench of which the jobs ran with different versions."""

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def title(self) -> str:
        """``task@scale``."""
        return f"{self.task}@{self.scale}"

    @property
    def note(self) -> str:
        """Why it is undecided, and what else a reader must know."""
        parts = ", ".join(self.mixed[:3]) + (", ..." if len(self.mixed) > 3 else "")
        mixture = [f"the jobs ran with different versions of {parts}"] if self.mixed else []
        return "; ".join([*self.judgement.notes, *mixture])

    @property
    def command(self) -> str:
        """What makes the missing jobs and shows the verdict; empty for a task that does not come with kdbench."""
        at = "" if self.scale == DEFAULT_SCALE else f" --scale {self.scale}"
        return f"kdbench claims --run {self.method}{at}" if self.standard and self.spec_digest else ""

    def record(self) -> dict[str, Any]:
        """A flat row for stores and programs."""
        claim, found = self.claim, self.judgement
        return {
            "method": self.method,
            "track": self.method.partition("/")[0],
            "claim": self.number,
            "task": self.task,
            "scale": self.scale,
            "spec_digest": self.spec_digest,
            "metric": claim.metric,
            "kind": claim.kind,
            "margin": float(claim.margin),
            "subject": self.subject,
            "reference": self.reference,
            "n": found.n,
            "effect": found.effect.mean if found.effect else None,
            "low": found.effect.low if found.effect else None,
            "high": found.effect.high if found.effect else None,
            "verdict": found.verdict,
            "note": self.note,
            "command": self.command,
        }


@dataclass(frozen=True)
class Conclusion:
    """What the findings on a paper come to at one scale."""

    method: str
    scale: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """Reproduced where every claim is on every task, not reproduced where any is not, otherwise undecided."""
        verdicts = {finding.verdict for finding in self.findings}
        if "not reproduced" in verdicts:
            return "not reproduced"
        return "reproduced" if verdicts == {"reproduced"} else "undecided"

    @property
    def counts(self) -> Counter[Verdict]:
        return Counter(finding.verdict for finding in self.findings)

    @property
    def ran(self) -> bool:
        """Whether any job of any of its sides is there."""
        return any(finding.jobs for finding in self.findings)


def conclude(findings: Iterable[Finding]) -> list[Conclusion]:
    """One conclusion per method and scale, of the tasks as they come, in the order of the findings."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.standard:
            groups[finding.method, finding.scale].append(finding)
    return [Conclusion(method, scale, tuple(group)) for (method, scale), group in groups.items()]
