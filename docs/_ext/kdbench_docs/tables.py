"""Tables of results in files that people read as they are, such as the README: written by the commands they name.

    PYTHONPATH=docs/_ext python -m kdbench_docs.tables README.md

Everything between a line ``<!-- kdbench VERB ... -->`` and the next ``<!-- end -->`` is what that command prints.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MARK = re.compile(r"^<!-- (kdbench [^\n]*?) -->\n(.*?)^<!-- end -->$", re.DOTALL | re.MULTILINE)


class Marked(NamedTuple):
    """A part of a page that a command writes."""

    command: str
    text: str


def marked(page: str) -> Iterator[Marked]:
    """The parts of a page that commands write."""
    return (Marked(match[1], match[2].strip("\n")) for match in _MARK.finditer(page))


def printed(command: str) -> str:
    """What a command prints. Raises ``SystemExit`` with what it says where it fails."""
    run = [sys.executable, "-c", "from kdbench.cli import main; main()", *shlex.split(command)[1:]]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.strip("\n")


def written(page: str) -> str:
    """A page with every marked part as its command prints it now."""
    return _MARK.sub(lambda match: f"<!-- {match[1]} -->\n{printed(match[1])}\n\n<!-- end -->", page)


def main(files: list[str]) -> None:
    for path in map(Path, files):
        before = path.read_text(encoding="utf-8")
        after = written(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
        print(f"{path}: {sum(1 for _ in marked(after))} tables{'' if after != before else ', nothing changed'}")


if __name__ == "__main__":
    main(sys.argv[1:])
