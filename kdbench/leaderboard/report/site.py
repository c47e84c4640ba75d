"""``kdbench report``: a results folder as a site that needs no server and no network.

The folder of the site is its own: a manifest lists every file, so that building it again replaces and removes those
alone. Everything is written beside the old files first, which stay until the new ones are whole.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import Problem, UsageError
from kdbench.leaderboard.boards import Selection
from kdbench.leaderboard.report.folder import SiteFolder
from kdbench.leaderboard.sections import sections
from kdbench.store import duck

if TYPE_CHECKING:
    from kdbench.registry import Registry

NEEDED = ("altair", "itables", "jinja2", "markdown_it", "vl_convert")
"""Packages of the extra ``report``."""


@dataclass(frozen=True)
class Built:
    """What was written."""

    pages: int
    files: int
    """Pages, scripts, styles, data and pictures."""
    size: int
    """Bytes of all files."""
    seconds: float
    index: Path
    """The page to open first."""


def build(
    results: Path,
    out: Path,
    *,
    selection: Selection | None = None,
    registry: Registry | None = None,
    problems: list[Problem] | None = None,
) -> Built:
    """Write the site of the selected jobs into ``out``; what an earlier one left there is replaced.

    Raises ``UsageError`` where ``out`` holds anything that is not of a site, where there are no results that fit, and
    where a package of the extra ``report`` is missing.
    """
    started = time.monotonic()
    require_packages()
    from kdbench.leaderboard.report import assets, compare, context, data
    from kdbench.leaderboard.report.pages import Site
    from kdbench.leaderboard.report.samples import copy_samples, usable
    from kdbench.registry import discover

    known = discover() if registry is None else registry
    chosen = selection or Selection()
    with SiteFolder(out) as folder:
        material = duck.query(results, lambda con: data.load(con, known, chosen), problems)
        material.samples = usable(material.samples, results)
        site = Site(material, known, results, sections(known.manager, results))
        pages = 0
        for page in site.pages():
            folder.write(page.path, context.render(page.template, page.context))
            pages += 1
        copy_samples(material.samples, results, folder.staging)
        compare.write(material.boards, folder.staging)
        assets.write_assets(folder.staging)
        files = folder.publish()
    size = sum((out / file).stat().st_size for file in files)
    return Built(pages, len(files), size, time.monotonic() - started, out / "index.html")


def require_packages() -> None:
    """Raise ``UsageError`` where a package of the extra ``report`` is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"pages need packages that are not installed: {', '.join(missing)}",
            hint="pip install 'kdbench[report]'",
        )
