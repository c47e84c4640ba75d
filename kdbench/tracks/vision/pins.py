"""Remake the pinned digests of ``tasks.yaml``: ``python -m kdbench.tracks.vision.pins [--write]``.

Makes the data of every task that pins a digest and compares. Exit code 1 where a pin is stale and was not rewritten.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kdbench.cache import Cache
from kdbench.catalog import Catalog
from kdbench.spec import digest
from kdbench.tracks.vision import TRACK, data
from kdbench.tracks.vision.spec import DataSpec, VisionSpec
from kdbench.yamlio import Document, load


def pinned() -> Iterator[tuple[str, str, VisionSpec]]:
    """(task, scale, specification) of every task and scale whose data a machine without a network can make."""
    catalog = Catalog({TRACK.name: TRACK})
    for entry in catalog.entries():
        for scale in entry.scales:
            spec = catalog.resolve(entry.name, scale)
            if spec.data.source != "hf":
                yield entry.name.split("/", 1)[1], scale, spec


def pin_of(spec: DataSpec, cache: Cache) -> str:
    """The pin that a specification should have; its data are made on the way."""
    unpinned = spec.model_copy(update={"digest": None})
    return f"{digest(unpinned.recipe())}:{data.load(unpinned, cache).digest}"


def line_of(document: Document, task: str, scale: str) -> int:
    """0-based line of ``tasks.yaml`` with the pin of a task at a scale."""
    place = document.place(("tasks", task, "scales", scale, "data", "digest"))
    return int(place.split(":")[-2]) - 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kdbench.tracks.vision.pins", description="Check or remake pins.")
    parser.add_argument("--write", action="store_true", help="rewrite stale pins in tasks.yaml")
    options = parser.parse_args(arguments)
    document = load(TRACK.tasks)
    lines = TRACK.tasks.read_text().split("\n")
    stale = 0
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        for task, scale, spec in pinned():
            pin = pin_of(spec.data, cache)
            if pin == spec.data.digest:
                continue
            stale += 1
            print(f"{task}@{scale}: {spec.data.digest} -> {pin}")
            line = line_of(document, task, scale)
            lines[line] = re.sub(r'digest: "[^"]*"', f'digest: "{pin}"', lines[line])
    if options.write:
        TRACK.tasks.write_text("\n".join(lines))
        return 0
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
