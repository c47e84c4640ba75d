"""The ledger of claims: every paper and every claim counts once, and what nobody ran is not called undecided."""

from __future__ import annotations

import pytest

from kdbench.cards import Compare
from kdbench.leaderboard import ledger
from kdbench.leaderboard.findings import Finding, conclude
from kdbench.leaderboard.ledger import CLAIMS, PAPERS, TOTAL
from kdbench.leaderboard.verdicts import Judgement, Verdict

R, N, U = "reproduced", "not reproduced", "undecided"


def finding(method: str, verdict: Verdict, *, jobs: int = 4, ran: bool = True, number: int = 1) -> Finding:
    return Finding(
        method=method,
        number=number,
        claim=Compare(metric="top1", subject="a", reference="b", tasks=["t"]),
        task="toy/t",
        scale="cpu",
        spec_digest="d",
        standard=True,
        subject="a",
        reference="b",
        direction="max",
        unit="",
        factor=1.0,
        jobs=jobs,
        judgement=Judgement(verdict, 2, ran=ran),
    )


FINDINGS = [
    finding("llm/good", R),
    finding("llm/good", R, number=2),
    finding("llm/bad", R),
    finding("llm/bad", N, number=2),
    finding("llm/bad", U, number=3),
    finding("llm/half", U, jobs=2, ran=False),
    finding("vision/open", U),
    finding("vision/never", U, jobs=0, ran=False),
]


def test_papers_and_claims_are_counted_by_track_and_in_all():
    counted = {(entry.track, entry.what): dict(entry.counts) for entry in ledger.ledger(conclude(FINDINGS))}
    assert counted == {
        ("llm", PAPERS): {R: 1, N: 1, U: 1},
        ("llm", CLAIMS): {R: 3, N: 1, U: 1, "not run": 1},
        ("vision", PAPERS): {U: 1, "not run": 1},
        ("vision", CLAIMS): {U: 1, "not run": 1},
        (TOTAL, PAPERS): {R: 1, N: 1, U: 2, "not run": 1},
        (TOTAL, CLAIMS): {R: 3, N: 1, U: 2, "not run": 2},
    }


def test_one_track_needs_no_total():
    entries = ledger.ledger(conclude(FINDINGS[:3]))
    assert [(entry.track, entry.what, entry.total) for entry in entries] == [("llm", PAPERS, 2), ("llm", CLAIMS, 3)]


def test_programs_get_a_row_per_track_and_kind_and_people_one_per_track():
    entries = ledger.ledger(conclude(FINDINGS))
    assert [entry.record() for entry in entries][1] == {
        "track": "llm",
        "what": CLAIMS,
        "reproduced": 3,
        "not_reproduced": 1,
        "undecided": 1,
        "not_run": 1,
        "total": 6,
    }
    columns, rows, right = ledger.table(entries)
    assert columns[:6] == ["track", PAPERS, R, N, U, "not run"]
    assert rows[0] == ["llm", 3, 1, 1, 1, 0, 6, 3, 1, 1, 1]
    assert [row[0] for row in rows] == ["llm", "vision", TOTAL]
    assert right == columns[1:]
    lines = ledger.to_markdown(entries).splitlines()
    assert lines[2] == "| llm | 3 | 1 | 1 | 1 | 0 | 6 | 3 | 1 | 1 | 1 |"
    assert lines[-1] == ledger.RULE


def test_nothing_makes_an_empty_ledger():
    assert ledger.ledger([]) == []
    assert ledger.table([])[1] == []


@pytest.mark.parametrize("verdict", [R, N, U])
def test_a_verdict_is_how_a_claim_came_out_unless_a_side_has_no_job(verdict):
    assert ledger.of_claim(finding("llm/x", verdict)) == verdict
    assert ledger.of_claim(finding("llm/x", U, ran=False)) == "not run"
