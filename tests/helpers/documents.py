"""Pages of the documentation: their sections, tables and shown commands, and building them."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kdbench import hookspecs

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or a higher one."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", page, re.MULTILINE)
    assert found, f"there is no heading {heading!r}"
    rest = page[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """The rows of the tables of a text, without their heads; cells are stripped."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = {number for number, row in enumerate(cells) if all(set(cell) <= set("-:") for cell in row)}
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


def named(text: str) -> dict[str, list[str]]:
    """Rows by the literals of their first cell."""
    return {name: row for row in rows(text) for name in re.findall(r"`([^`]+)`", row[0])}


def hook_classes() -> list[type]:
    mark = f"{hookspecs.PROJECT}_spec"
    classes = [value for value in vars(hookspecs).values() if inspect.isclass(value)]
    return [c for c in classes if any(hasattr(member, mark) for member in vars(c).values())]


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


class Shown(NamedTuple):
    """A command as a page shows it."""

    command: str
    output: str
    """What is shown below it; empty where nothing is."""


def commands(page: str) -> Iterator[Shown]:
    """The commands of the blocks ``console``, without the comments after them."""
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield Shown(re.sub(r"\s+#\s.*$", "", command).strip(), output)


def copied(folder: Path) -> Path:
    """A copy of the documentation's sources, with what they include from elsewhere."""
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("_build", "methods", "__pycache__"))
    (folder / "suites").symlink_to(ROOT / "suites")
    return folder / "docs"


def build(source: Path, target: Path) -> None:
    """``make docs`` of a copy; the test fails with what Sphinx says."""
    made = target.with_name(f"{target.name}-new")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-j",
        "auto",
        "-b",
        "html",
        str(source),
        str(made),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made.rename(target)
