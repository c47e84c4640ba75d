"""Where pages are: file names that are safe whatever results call things."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256

from kdbench.leaderboard.boards import Board

PLAIN = re.compile(r"[a-z0-9_]+(?:-[a-z0-9_]+)*")
"""Parts of names that are used as they are: no dots, which separate parts, and no two hyphens, which stand before
digests."""
LONGEST = 80
"""Characters of a part."""
INDEX = "index.html"
CLAIMS = "claims.html"
COMPARE = "compare.html"


def page_name(*parts: str) -> str:
    """A file name (without suffix) of ``[a-z0-9._-]`` alone, different for different parts.

    Parts are joined by dots. Where one has to be changed (other characters, upper case, empty, too long), a digest of
    all of them is appended after two hyphens, which no unchanged name has.
    """
    if parts and all(PLAIN.fullmatch(part) and len(part) <= LONGEST for part in parts):
        return ".".join(parts)
    safe = [re.sub("[^a-z0-9_]+", "-", part.lower()).strip("-")[:40].strip("-") or "x" for part in parts]
    digest = sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:12]
    return f"{'.'.join(safe)}--{digest}"


def track_page(track: str) -> str:
    """Path of a track's page in the site."""
    return f"tracks/{page_name(track)}.html"


def method_page(method: str) -> str:
    """Path of the page of a method (``track/slug``)."""
    return f"methods/{page_name(*method.split('/', 1))}.html"


def job_page(id: str) -> str:
    """Path of the page of a failed job."""
    return f"jobs/{page_name(id)}.html"


def task_pages(boards: Iterable[Board]) -> dict[str, str]:
    """Path of the page of each board, by the digest of its task.

    The first board of a task and scale, which is that of the newest definition, has the plain name.
    """
    pages: dict[str, str] = {}
    for board in boards:
        parts = (*board.task.split("/", 1), board.scale)
        path = f"tasks/{page_name(*parts)}.html"
        pages[board.spec_digest] = (
            path if path not in pages.values() else f"tasks/{page_name(*parts, board.spec_digest)}.html"
        )
    return pages
