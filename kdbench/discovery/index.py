"""What was read from plugins and from installed distributions, kept between invocations.

The index is a convenience: it is made anew where it is damaged, and not written where it cannot be. What is in it
is used without importing the code that reads plugins.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from kdbench import cards as card_types
from kdbench import hookspecs
from kdbench.cards import Baseline, Card, Compare, Paper
from kdbench.discovery.records import Broken, Flaw, ParamField, Reading

log = logging.getLogger(__name__)

FORMAT = 1
RACY_SECONDS = 2.0
"""A file that changed this shortly before it was read may change again within one tick of the file system's clock."""
READERS = ("cards", "digests", "hooks", "installed", "literals", "params", "records", "source")
"""Modules beside this one that decide what a reading is."""
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
"""What using content of another form than was written may raise."""


class EntryPoint(NamedTuple):
    """An entry point of the group ``kdbench``."""

    name: str
    value: str
    """``module`` or ``module:attribute``."""
    source: str
    """``entry point NAME (DIST VERSION)``."""


def reader_version() -> str:
    """Changes whenever the code that reads plugins does: results of another reader are not used."""
    here = Path(__file__)
    files: list[str | Path] = [
        here,
        *(here.with_name(f"{name}.py") for name in READERS),
        str(card_types.__file__),
        str(hookspecs.__file__),
    ]
    stamps = [os.stat(file) for file in files]
    return " ".join([str(FORMAT), *(f"{stamp.st_mtime_ns}:{stamp.st_size}" for stamp in stamps)])


class Index:
    """Readings by path, valid as long as a file keeps its times and its size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changed = False
        self._version = reader_version()
        content = self._load()
        self._entries: dict[str, Any] = content["entries"]
        self._installed: dict[str, Any] = content["installed"]

    def read(self, path: Path) -> Reading:
        """The reading of a file, from the index where the file has not changed. Raises ``OSError``."""
        status = path.stat()
        stamp = [status.st_mtime_ns, status.st_ctime_ns, status.st_size]
        try:
            entry = self._entries[str(path)]
            if entry["stamp"] == stamp:
                return _decode_reading(entry["reading"])
        except DAMAGE as error:
            log.debug("%s is not in the index %s: %r", path, self.path, error)
        from kdbench.discovery import source

        reading = source.read(path)
        if _settled(status.st_mtime, status.st_ctime):
            self._entries[str(path)] = {"stamp": stamp, "reading": _encode_reading(reading)}
            self._changed = True
        return reading

    def entry_points(self) -> list[EntryPoint | Broken]:
        """Entry points of installed distributions, from the index while no folder of ``sys.path`` has changed.

        Installers replace a distribution's metadata folder, which changes the time of the folder around it.
        """
        stamp: list[list[Any]] = []
        newest = 0.0
        for folder in sys.path:
            try:
                status = os.stat(folder or ".")
            except OSError:
                continue  # sys.path may name what does not exist
            stamp.append([os.path.abspath(folder), status.st_mtime_ns])
            newest = max(newest, status.st_mtime)
        try:
            known = self._installed[sys.prefix]
            if known["stamp"] == stamp:
                return [EntryPoint(**point) for point in known["points"]]
        except DAMAGE as error:
            log.debug("entry points are not in the index %s: %r", self.path, error)
        from kdbench.discovery.installed import entry_points

        found = list(entry_points())
        points = [point._asdict() for point in found if isinstance(point, EntryPoint)]
        if len(points) == len(found) and _settled(newest):
            self._installed[sys.prefix] = {"stamp": stamp, "points": points}
            self._changed = True
        return found

    def save(self) -> None:
        """Write what is new, by one rename; files that are gone are left out."""
        if not self._changed:
            return
        entries = {path: entry for path, entry in self._entries.items() if os.path.exists(path)}
        text = json.dumps(
            {"version": self._version, "entries": entries, "installed": self._installed}, separators=(",", ":")
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
        except OSError as error:
            log.debug("the index %s cannot be written: %s", self.path, error)
            return
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, self.path)
        except OSError as error:
            log.debug("the index %s cannot be written: %s", self.path, error)
            Path(name).unlink(missing_ok=True)
        self._changed = False

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["version"] == self._version:
                return {name: dict(content[name]) for name in ("entries", "installed")}
        except (OSError, *DAMAGE) as error:
            log.debug("the index %s is made anew: %r", self.path, error)
        return {"entries": {}, "installed": {}}


def _settled(*times: float) -> bool:
    return time.time() - max(times) > RACY_SECONDS


# --- JSON that keeps tuples apart from lists --------------------------------------------------------------------------


def _encode(value: Any) -> Any:
    match value:
        case tuple():
            return {"tuple": [_encode(item) for item in value]}
        case list():
            return [_encode(item) for item in value]
        case Compare():
            return {"compare": {field.name: _encode(getattr(value, field.name)) for field in fields(value)}}
        case dict():
            return {"dict": {key: _encode(item) for key, item in value.items()}}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tuple":
        return tuple(_decode(item) for item in content)
    decoded = {key: _decode(item) for key, item in content.items()}
    return Compare(**decoded) if kind == "compare" else decoded


def _encode_card(card: Card) -> dict[str, Any]:
    return {"class": type(card).__name__, **{f.name: _encode(getattr(card, f.name)) for f in fields(card)}}


def _decode_card(content: dict[str, Any]) -> Card:
    values = {name: _decode(value) for name, value in content.items() if name != "class"}
    classes: dict[str, type[Card]] = {"Paper": Paper, "Baseline": Baseline}
    return classes[content["class"]](**values)


def _encode_reading(reading: Reading) -> dict[str, Any]:
    content = {field.name: getattr(reading, field.name) for field in fields(reading)}
    content["card"] = None if reading.card is None else _encode_card(reading.card)
    content["flaws"] = [flaw._asdict() for flaw in reading.flaws]
    content["fields"] = [
        {field.name: _encode(getattr(item, field.name)) for field in fields(item)} for item in reading.fields
    ]
    return content


def _decode_reading(content: dict[str, Any]) -> Reading:
    content = dict(content)
    content["card"] = None if content["card"] is None else _decode_card(content["card"])
    content["flaws"] = tuple(Flaw(**flaw) for flaw in content["flaws"])
    content["fields"] = tuple(
        ParamField(**{name: _decode(value) for name, value in item.items()}) for item in content["fields"]
    )
    for name in ("track_position", "imports", "hooks"):
        content[name] = tuple(content[name])
    return Reading(**content)
