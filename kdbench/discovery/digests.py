"""Which code a method is: the digest that its jobs are identified by."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator

from kdbench.discovery.cards import card_statements
from kdbench.discovery.literals import Names

UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What the parser raises for a file that is no Python."""


def method_digest(content: bytes, tree: ast.Module | None = None) -> str:
    """SHA-256 of a method's file without its card and the docstring of the module, in hexadecimal.

    Those are for people and leaderboards, and no result depends on them: a claim that is corrected makes no job new. A
    card or a docstring that the code itself reads counts. Of a file that is no Python or has no card it is the digest
    of the whole. ``tree``: the parsed file, where it is at hand.
    """
    try:
        source = content.decode("utf-8-sig")
        said = list(_said(ast.parse(source) if tree is None else tree))
    except UNREADABLE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha256(_without(source.encode(), said)).hexdigest()


def _said(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of a method's module that only say something about it, in order."""
    cards = card_statements(tree, Names(tree))
    if not cards:
        return
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    if ast.get_docstring(tree, clean=False) is not None and "__doc__" not in read:
        yield tree.body[0]
    for card in cards:
        bound = {node.id for node in ast.walk(card) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        if not bound & read:
            yield card


def _without(source: bytes, statements: list[ast.stmt]) -> bytes:
    """UTF-8 text without some of its statements. The parser's columns are bytes, and its lines those of ``bytes``."""
    lines = source.splitlines(keepends=True)
    for node in reversed(statements):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        rest = lines[last][node.end_col_offset :]
        lines[first : last + 1] = [lines[first][: node.col_offset] + rest]
    return b"".join(lines)
