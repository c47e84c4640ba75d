"""What the static site costs: the time of ``kdbench report`` and the size of its pages with many results.

The results are drawn, not trained: every method on every task with every seed. The real command makes the site, in a
process of its own, from a store that is up to date. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import measure
import typer
from compare import spent
from measure import Failed
from rich.console import Console
from rich.table import Table
from scheduler import Row, machine

ROOT = Path(__file__).resolve().parent.parent
KB, MB = 1e3, 1e6


def rows(folder: Path, sizes: tuple[int, int, int]) -> Iterator[Row]:
    """Make results of this many methods, tasks and seeds, then the site, and measure it."""
    sys.path.insert(0, str(ROOT))
    from kdbench.store import duck
    from tests.helpers import site

    results, out = folder / "results", folder / "site"
    jobs = site.large(results, *sizes)
    started = time.process_time()
    duck.sync(results)
    what = f"{jobs} jobs: {sizes[0]} methods, {sizes[1]} tasks, {sizes[2]} seeds"
    yield Row("filling the store (not part of the build)", time.process_time() - started, "s CPU", detail=what)
    done = spent([measure.script("kdbench"), "report", "--results", str(results), "--out", str(out)])
    pages = _sizes(out, "*.html")
    yield Row("building the site", done.cpu, "s CPU", 30.0, detail=f"{len(pages)} pages; {done.wall:.1f} s wall clock")
    yield Row("peak of memory", done.peak / MB, "MB")
    yield Row("largest page", pages[0][0] / KB, "kB", 300.0, detail=pages[0][1])
    data = _sizes(out / "assets" / "data", "*")
    if data:
        yield Row("largest file of data", data[0][0] / KB, "kB", 1000.0, detail=f"{len(data)} files")
    shared = [size for size, name in _sizes(out / "assets", "*") if not name.startswith("data/")]
    yield Row("shared scripts and styles", sum(shared) / KB, "kB", detail=f"{len(shared)} files")
    yield Row("whole site", sum(size for size, _ in _sizes(out, "*")) / MB, "MB")


def _sizes(folder: Path, pattern: str) -> list[tuple[int, str]]:
    """Bytes and paths of the files below a folder, the largest first."""
    files = (path for path in folder.rglob(pattern) if path.is_file())
    return sorted(((path.stat().st_size, str(path.relative_to(folder))) for path in files), reverse=True)


def table(measured: Sequence[Row]) -> Table:
    """The rows for people."""
    shown = Table(box=None, pad_edge=False)
    for name in ("", "measured", "limit", "about"):
        shown.add_column(name, justify="right" if name in ("measured", "limit") else "left")
    for row in measured:
        limit = "" if row.limit is None else f"{row.limit:g}"
        shown.add_row(row.name, f"{row.value:.3g} {row.unit}", limit, row.detail, style=None if row.met else "red")
    return shown


def main(
    methods: Annotated[int, typer.Option(min=2, help="Methods, each on every task.")] = 226,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks.")] = 40,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds.")] = 5,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a limit is not met.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how long the site of many results takes, and how large its pages are."""
    where = machine()
    with tempfile.TemporaryDirectory(prefix="kdbench-report-") as folder:
        try:
            measured = list(rows(Path(folder), (methods, tasks, seeds)))
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from error
    if as_json:
        print(json.dumps({"machine": where, "rows": [{**asdict(row), "met": row.met} for row in measured]}, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(where, highlight=False)
        console.print(table(measured), highlight=False)
    if check and not all(row.met for row in measured):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
