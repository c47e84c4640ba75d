"""Make the pack that a track ships: ``python -m kdbench.training.packs TRACK OUT``.

A pack is a folder of cache entries as they are (``<kind>/<digest of the key>``), so that loading from it is loading
from the cache. Every task of the track is prepared at the chosen scales, and the teachers it used are copied.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.registry import discover
from kdbench.spec import TaskSpec
from kdbench.task import Task
from kdbench.track import Track


class RecordingCache(Cache):
    """A cache that remembers which entries were used, wherever they came from."""

    def __init__(self, root: Path | None = None, packs: Sequence[Path] = ()) -> None:
        super().__init__(root, packs)
        self.used: dict[tuple[str, str], Path] = {}
        """Folder by (kind, name of the folder)."""

    def get(self, kind: str, key: Any, make: Callable[[Path], None]) -> Path:
        folder = super().get(kind, key, make)
        self.used[kind, folder.name] = folder
        return folder


def prepare(track: Track, spec: TaskSpec, cache: Cache) -> None:
    """Make what all jobs of a task share."""
    cls: type[Task] = resolve_name(track.task)
    with tempfile.TemporaryDirectory() as folder:
        cls(spec, seed=0, method="pack", folder=Path(folder), cache=cache).prepare()


def copy(cache: RecordingCache, out: Path, kinds: Sequence[str], least_seconds: float) -> list[tuple[Path, int, float]]:
    """Copy used entries of some kinds that took at least so long to make: (folder, bytes, seconds) of each."""
    copied = []
    for (kind, name), folder in sorted(cache.used.items()):
        if kind not in kinds:
            continue
        entry = json.loads((folder / "entry.json").read_text())
        if entry["seconds"] < least_seconds:
            continue
        target = out / kind / name
        if target.resolve() != folder.resolve():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target)
        copied.append((target, sum(int(file["size"]) for file in entry["files"].values()), float(entry["seconds"])))
    return copied


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kdbench.training.packs", description=__doc__.split("\n")[0])
    parser.add_argument("track")
    parser.add_argument("out", type=Path, help="folder of the pack; entries that are there already are kept")
    parser.add_argument("--scale", action="append", help="scales to prepare (default: quick and cpu)")
    parser.add_argument("--task", action="append", help="names of tasks to prepare (default: all)")
    parser.add_argument("--kind", action="append", help="kinds of entries to copy (default: teacher and table)")
    parser.add_argument("--least-seconds", type=float, default=20, help="leave out what is made faster (default: 20)")
    parser.add_argument("--cache", type=Path, help="cache to use (default: the user's)")
    options = parser.parse_args(arguments)
    registry = discover()
    if options.track not in registry.tracks:
        raise UsageError(f"there is no track {options.track!r}", hint="tracks: " + ", ".join(registry.tracks))
    track = registry.tracks[options.track]
    cache = RecordingCache(options.cache, [track.packs] if track.packs is not None else [])
    for entry in registry.tasks():
        if entry.track != track.name or (options.task and entry.name.split("/", 1)[1] not in options.task):
            continue
        for scale in options.scale or ("quick", "cpu"):
            if scale in entry.scales:
                spec = registry.task(entry.name, scale)
                prepare(track, spec, cache)
                print(f"{entry.name}@{scale} is prepared", flush=True)
    copied = copy(cache, options.out, options.kind or ["teacher", "table"], options.least_seconds)
    for folder, size, seconds in copied:
        print(f"{folder}  {size / 1024:.0f} KiB, made in {seconds:.0f} s")
    print(f"{len(copied)} entries, {sum(size for _, size, _ in copied) / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
