"""Real text that ships with CPython: the language reference, the standard library's sources and their docstrings.

The text depends on the Python release, so tasks pin it by digest. The snapshot that they pin travels as a cache entry
of the track's pack; it is taken anew only where Python itself is of the pinned release.
"""

from __future__ import annotations

import ast
import hashlib
import json
import lzma
import platform
import sysconfig
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.cache import Cache
from kdbench.errors import JobError
from kdbench.spec import canonical_json
from kdbench.tracks.llm.data.specs import CPYTHON

CODE_BYTES = 2_000_000
"""Standard-library sources are taken, in a fixed random order, up to this size in all."""
LARGEST_FILE = 60_000
SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "site-packages",
    "__pycache__",
    "pydoc_data",
    "ensurepip",
}
SHORTEST_DOCSTRING = 40
"""Characters of the shortest docstring that is taken for classification."""


@dataclass(frozen=True)
class Document:
    """A text with what is known about it."""

    text: str
    domain: str
    meta: dict[str, Any] = field(default_factory=dict)


def ascii_text(text: str) -> str:
    """The text in ASCII: typographic signs become plain ones, what has no plain form is dropped.

    With one byte per character, offsets mean the same for every tokenizer.
    """
    plain = text.translate(
        {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "--", 0x2026: "..."}
    )
    return unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()


def rank(name: str) -> str:
    """Key of a fixed random order."""
    return hashlib.sha256(name.encode()).hexdigest()


def sources(root: Path) -> list[Path]:
    """Python files of the standard library below ``root``, without tests and bundled programs, by name."""
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED.intersection(path.relative_to(root).parts) and not path.name.startswith("_sysconfigdata")
    ]


def snapshot() -> dict[str, list[dict[str, str]]]:
    """The corpus of the Python that runs: ``docs``, ``code`` and ``docstrings``, each in a fixed order."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_paths()["stdlib"])
    docs = [{"name": name, "text": ascii_text(text)} for name, text in sorted(topics.items())]
    code: list[dict[str, str]] = []
    docstrings: list[dict[str, str]] = []
    size = 0
    files = sorted(sources(root), key=lambda path: rank(path.relative_to(root).as_posix()))
    for path in files:
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8", errors="strict") if _is_utf8(path) else ""
        if text.isascii() and 0 < len(text) <= LARGEST_FILE and size + len(text) <= CODE_BYTES:
            code.append({"name": name, "text": text})
            size += len(text)
        docstrings += [{"module": name.split("/")[0].removesuffix(".py"), "text": doc} for doc in _docstrings(text)]
    return {"docs": docs, "code": code, "docstrings": docstrings}


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _docstrings(source: str) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    found = (ascii_text(ast.get_docstring(node) or "") for node in nodes)
    return [doc for doc in found if len(doc) >= SHORTEST_DOCSTRING]


def digest_of(corpus: dict[str, Any]) -> str:
    """SHA-256 of a corpus, first 16 digits."""
    return hashlib.sha256(canonical_json(corpus).encode()).hexdigest()[:16]


def load(cache: Cache, pinned: str) -> dict[str, list[dict[str, str]]]:
    """The corpus with the digest ``pinned``: from the cache or a pack, or taken from the Python that runs.

    Raises ``JobError`` where neither has it.
    """

    def make(folder: Path) -> None:
        if platform.python_version() != CPYTHON:
            raise JobError(
                f"the text corpus {pinned} of CPython {CPYTHON} is in neither the cache nor the packs, and this is "
                f"Python {platform.python_version()}, whose texts differ"
            )
        corpus = snapshot()
        if digest_of(corpus) != pinned:
            raise JobError(f"this CPython {CPYTHON} gives the corpus {digest_of(corpus)}, but the task pins {pinned!r}")
        write(corpus, folder)

    folder = cache.get("corpus", {"source": "cpython", "release": CPYTHON, "digest": pinned}, make)
    corpus: dict[str, list[dict[str, str]]] = json.loads(lzma.decompress((folder / "corpus.json.xz").read_bytes()))
    if digest_of(corpus) != pinned:
        raise JobError(f"the corpus in {folder} does not have the digest {pinned!r} that the task pins")
    return corpus


def write(corpus: dict[str, Any], folder: Path) -> None:
    """Write a corpus beside the licence that it comes under."""
    (folder / "corpus.json.xz").write_bytes(lzma.compress(canonical_json(corpus).encode(), preset=9))
    licence = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    (folder / "LICENSE-PYTHON.txt").write_text(licence.read_text())
