"""Which jobs a board, a comparison or a data frame is about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Selection:
    """Which jobs to show; None: all."""

    suite: str | None = None
    track: str | None = None
    task: str | None = None
    """``track/name``, ``name`` or either with ``@scale``."""
    method: str | None = None
    """``track/slug`` or ``slug``."""

    def where(self) -> tuple[str, list[str]]:
        """A condition on the columns of ``jobs`` with its values."""
        parts, values = ["TRUE"], []
        if self.suite is not None:
            parts.append("id IN (SELECT id FROM store.suites WHERE suite = ?)")
            values.append(self.suite)
        if self.track is not None:
            parts.append("track = ?")
            values.append(self.track)
        if self.task is not None:
            name, _, scale = self.task.partition("@")
            parts.append("task = ?" if "/" in name else "split_part(task, '/', 2) = ?")
            values.append(name)
            if scale:
                parts.append("scale = ?")
                values.append(scale)
        if self.method is not None:
            parts.append("method = ?" if "/" in self.method else "slug = ?")
            values.append(self.method)
        return " AND ".join(parts), values

    def check(self, con: duckdb.DuckDBPyConnection) -> None:
        """Raise ``UsageError`` where the results hold nothing that fits, with what is close."""
        where, values = self.where()
        if con.execute(f"SELECT count(*) FROM store.jobs WHERE {where}", values).fetchone() != (0,):
            return
        tasks = "SELECT DISTINCT task FROM store.jobs UNION SELECT DISTINCT task || '@' || scale FROM store.jobs"
        for option, value, known in (
            ("suite", self.suite, "SELECT DISTINCT suite FROM store.suites"),
            ("track", self.track, "SELECT DISTINCT track FROM store.jobs"),
            ("task", self.task, f"{tasks} UNION SELECT split_part(task, '/', 2) FROM store.jobs"),
            ("method", self.method, "SELECT DISTINCT method FROM store.jobs UNION SELECT slug FROM store.jobs"),
        ):
            if value is None:
                continue
            names = [name for (name,) in con.execute(known).fetchall()]
            if value not in names:
                message = f"no results of the {option} {value!r}"
                raise UsageError(message, place=f"--{option}", hint=did_you_mean(value, names, label="with results"))
        given = ", ".join(f"{name} {value!r}" for name, value in vars(self).items() if value is not None)
        raise UsageError(f"no results fit {given} together")


def suite_name(suite: str | None) -> str | None:
    """Name of a suite that is given by its name or its file. Raises ``UsageError`` for a file that cannot be read."""
    if suite is None or not suite.endswith((".yaml", ".yml")):
        return suite
    from kdbench.yamlio import load

    path = Path(suite)
    data = load(path).data
    return str(data.get("name") or path.stem) if isinstance(data, dict) else path.stem
