"""Tables that commands write into pages: they are what the committed reference results give."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kdbench_docs import tables

from kdbench.leaderboard import ledger
from kdbench.leaderboard.verdicts import VERDICTS
from kdbench.store import export, reference
from tests.helpers.documents import ROOT, rows

README = (ROOT / "README.md").read_text()
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/results.md")}
LEDGER = "kdbench claims --reference --summary --format md"


@pytest.fixture(scope="module", autouse=True)
def this_checkout() -> None:
    assert reference.places(), "no reference results"
    assert all(place.parent == ROOT / "results" / "reference" for place in reference.places())


def decided(text: str) -> dict[str, list[str]]:
    """How many papers and claims of each track came out how.

    Without those that were not run and their total: they change with every card, and `make tables` brings them up.
    """
    columns = next(line for line in text.splitlines() if line.startswith("| track")).split("|")[1:-1]
    chosen = [number for number, name in enumerate(columns) if name.strip() in VERDICTS]
    assert len(chosen) == 2 * len(VERDICTS)
    found = {row[0]: [row[number] for number in chosen] for row in rows(text)}
    return {track: counts for track, counts in found.items() if set(counts) != {"0"}}


def test_the_ledger_of_the_readme_is_that_of_the_reference_results():
    (shown,) = [part.text for part in tables.marked(README) if part.command == LEDGER]
    printed = tables.printed(LEDGER)
    assert decided(shown) == decided(printed), "make tables writes it anew"
    assert decided(printed), "there are results"
    assert ledger.RULE in shown


@pytest.mark.parametrize("page", PAGES)
def test_every_other_table_is_what_its_command_prints(page: str):
    for part in tables.marked(PAGES[page]):
        if part.command != LEDGER:
            assert part.text == tables.printed(part.command), f"{part.command}: make tables writes it anew"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_writes_a_table_is_shown(page: str):
    assert list(tables.marked(PAGES[page]))
    for part in tables.marked(PAGES[page]):
        assert f"`{part.command}`" in PAGES[page] or f"$ {part.command}" in PAGES[page]


def test_the_exports_are_whole_and_small():
    size = 0
    for place in reference.places():
        manifest = export.read_manifest(place)
        assert manifest.complete
        assert manifest.files["jobs.parquet"].rows > 0
        size += sum(path.stat().st_size for path in place.iterdir())
    assert size < 20e6


def test_a_marked_part_becomes_what_its_command_prints_and_the_rest_stays(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "printed", lambda command: command.upper())
    page = "a\n<!-- kdbench x --y 1 -->\nold\n\nlines\n<!-- end -->\nb\n<!-- kdbench z -->\n<!-- end -->\nkdbench w\n"
    path = tmp_path / "page.md"
    path.write_text(page)
    tables.main([str(path)])
    first = "<!-- kdbench x --y 1 -->\nKDBENCH X --Y 1\n\n<!-- end -->\n"
    second = "<!-- kdbench z -->\nKDBENCH Z\n\n<!-- end -->\n"
    assert path.read_text() == f"a\n{first}b\n{second}kdbench w\n"
    assert [part.text for part in tables.marked(path.read_text())] == ["KDBENCH X --Y 1", "KDBENCH Z"]
    before = os.stat(path).st_mtime_ns
    tables.main([str(path)])
    assert os.stat(path).st_mtime_ns == before
    assert capsys.readouterr().out.splitlines() == [f"{path}: 2 tables", f"{path}: 2 tables, nothing changed"]


def test_a_command_that_fails_writes_nothing(tmp_path: Path):
    path = tmp_path / "page.md"
    path.write_text("<!-- kdbench claims --scale huge -->\nold\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="there is no scale 'huge'"):
        tables.main([str(path)])
    assert "old" in path.read_text()
