"""Entry points of installed distributions, read from their metadata without importing them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import Distribution, distributions

from kdbench.discovery.index import EntryPoint
from kdbench.discovery.records import Broken

GROUP = "kdbench"


def entry_points() -> Iterator[EntryPoint | Broken]:
    """Entry points of the group, distribution by distribution, so that a damaged one hides no other."""
    seen: set[str] = set()
    for distribution in distributions():
        try:
            text = distribution.read_text("entry_points.txt")
            if text is None or f"[{GROUP}]" not in text:
                continue
            name = str(distribution.metadata["Name"])
            if name.lower() in seen:  # shadowed by an earlier entry of sys.path
                continue
            seen.add(name.lower())
            found = list(_points(distribution, name))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            place = str(getattr(distribution, "_path", "an installed distribution"))
            hint = "install the distribution again, or remove it"
            yield Broken(place, f"its metadata cannot be read: {error}", hint, "entry point")
            continue
        yield from found


def _points(distribution: Distribution, name: str) -> Iterator[EntryPoint | Broken]:
    for point in sorted(distribution.entry_points.select(group=GROUP), key=lambda point: point.name):
        source = f"entry point {point.name} ({name} {distribution.version})"
        if point.pattern.match(point.value) is None:
            yield Broken(source, f"{point.value!r} is no module and no module:attribute", "", source, (point.name,))
        else:
            value = f"{point.module}:{point.attr}" if point.attr else point.module
            yield EntryPoint(point.name, value, source)
