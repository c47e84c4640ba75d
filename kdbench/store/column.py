"""What a documented view is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a view."""

    name: str
    doc: str
    sql: str = ""
    """Expression, where it is not a column of the same name."""


@dataclass(frozen=True)
class View:
    """A documented view."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    source: str
    """What follows the select list."""

    @property
    def query(self) -> str:
        chosen = ",\n  ".join(f"{column.sql or column.name} AS {column.name}" for column in self.columns)
        return f"SELECT\n  {chosen}\n{self.source}"


Views = tuple[View, ...]
