"""What is known of methods beside their outcomes: their cards, and what outcomes say about the claims on them.

Both come from the registry, so they are of the installation that brought the store up to date last, and hold nothing
of methods that it does not have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from kdbench.cards import Paper
from kdbench.errors import Problem, UsageError
from kdbench.spec import digest
from kdbench.store import schema, spool

if TYPE_CHECKING:
    import duckdb

    from kdbench.registry import Registry

KEY = "cards"
"""In ``store.meta``: the state of what the tables show; empty where jobs have changed since."""


def state_of(registry: Registry) -> str:
    """Changes with every method and with every file that defines tasks."""
    files = {entry.place.rsplit(":", 2)[0] for entry in registry.tasks()}
    tasks = {file: _content(file) for file in sorted(files)}
    return digest([{key: method.digest for key, method in registry.methods.items()}, tasks])


def _content(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def shown(con: duckdb.DuckDBPyConnection) -> str:
    """The state of the cards that the store shows; empty where it is to be filled."""
    found = con.execute("SELECT value FROM store.meta WHERE key = ?", [KEY]).fetchone()
    return str(found[0]) if found else ""


def fill(con: duckdb.DuckDBPyConnection, registry: Registry, state: str, problems: list[Problem] | None = None) -> None:
    """Make the tables of cards and claims show what ``registry`` has and what the jobs in the store say.

    Where the claims cannot be judged, that is a problem, and there are none; the next look tries again.
    """
    from kdbench.leaderboard.claims import records
    from kdbench.store import ingest

    con.execute("BEGIN")
    try:
        try:
            claims = records(con, registry)
        except UsageError as error:
            spool.report(error, problems)
            claims, state = [], ""
        for table, rows in (("cards", list(_cards(registry))), ("claims", claims)):
            con.execute(f"DELETE FROM store.{table}")
            ingest.append(con, table, [tuple(row[name] for name in schema.TABLES[table]) for row in rows])
        mark(con, state)
        con.execute("COMMIT")
    except BaseException:
        ingest.roll_back(con)
        raise


def mark(con: duckdb.DuckDBPyConnection, state: str) -> None:
    """Note of which state the tables are."""
    con.execute("DELETE FROM store.meta WHERE key = ?", [KEY])
    con.execute("INSERT INTO store.meta VALUES (?, ?)", [KEY, state])


def _cards(registry: Registry) -> Iterator[dict[str, Any]]:
    for key, method in registry.methods.items():
        card = method.card
        said = {field.name: getattr(card, field.name) for field in fields(card)}
        row = {name: said.get(name) or None for name in schema.TABLES["cards"]}
        yield row | {
            "method": key,
            "kind": "paper" if isinstance(card, Paper) else "baseline",
            "venue": said.get("venue") or said.get("reference") or None,
            "requires": json.dumps(list(card.requires)),
            "tags": json.dumps(list(card.tags)),
        }
