"""Values and places in the source of a plugin: what can be read from a syntax tree without executing anything."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from kdbench.discovery.records import Flaw


class NotLiteral(Exception):
    """A value that would have to be executed to be known; ``node`` is the smallest part that is to blame."""

    def __init__(self, node: ast.AST, reason: str) -> None:
        self.node = node
        super().__init__(reason)


class Text:
    """The text of a file, for turning positions of the syntax tree (bytes, 0-based) into places for people."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()

    def position(self, node: ast.AST) -> tuple[int, int]:
        """1-based line and column, in characters, at which a node begins."""
        line = getattr(node, "lineno", 1)
        offset = getattr(node, "col_offset", 0)
        content = self.lines[line - 1] if line <= len(self.lines) else ""
        return line, len(content.encode()[:offset].decode(errors="replace")) + 1

    def flaw(self, node: ast.AST, reason: str, hint: str = "") -> Flaw:
        """A flaw at a node."""
        return Flaw(*self.position(node), reason, hint)


def literal(node: ast.expr, call: Callable[[ast.Call], Any] | None = None) -> Any:
    """The value of a literal expression: text, numbers, ``True``, ``None``, lists, tuples and dicts with text as keys.

    ``call`` makes the value of a call where one is allowed. Raises :class:`NotLiteral` for everything else.
    """
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)):
            if not isinstance(number, bool):
                return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=items):
            return [literal(item, call) for item in items]
        case ast.Tuple(elts=items):
            return tuple(literal(item, call) for item in items)
        case ast.Dict(keys=keys, values=values):
            return {_key(key, node): literal(value, call) for key, value in zip(keys, values, strict=True)}
        case ast.Call() if call is not None:
            return call(node)
    raise NotLiteral(node, f"{_describe(node)} is not a literal")


def _key(node: ast.expr | None, whole: ast.Dict) -> str:
    if node is None:
        raise NotLiteral(whole, "** in a dict is not a literal")
    value = literal(node)
    if not isinstance(value, str):
        raise NotLiteral(node, f"the key {value!r} of a dict is not text")
    return value


def _describe(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else text[:57] + "..."


class Names:
    """What the names of a module mean, as far as its imports tell."""

    def __init__(self, tree: ast.Module) -> None:
        self._meaning: dict[str, str] = {}
        self.defined: set[str] = set()
        self._star = False
        for node in _statements(tree.body):
            match node:
                case ast.Import(names=names):
                    for alias in names:
                        self._meaning[alias.asname or alias.name.split(".")[0]] = (
                            alias.name if alias.asname else alias.name.split(".")[0]
                        )
                case ast.ImportFrom(module=str() as module, names=names, level=0):
                    self._star |= names[0].name == "*" and module.split(".")[0] == "kdbench"
                    for alias in names:
                        self._meaning[alias.asname or alias.name] = f"{module}.{alias.name}"
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    self.defined.add(name)

    def of(self, node: ast.AST) -> str:
        """Dotted name that an expression stands for, such as ``kdbench.Paper``; empty where it is no plain name."""
        match node:
            case ast.Name(id=name):
                return self._meaning.get(name, name)
            case ast.Attribute(value=value, attr=attr):
                head = self.of(value)
                return f"{head}.{attr}" if head else ""
        return ""

    def ours(self, node: ast.AST) -> str:
        """The last part of a name of kdbench (``Paper``, ``Params``, ``hookimpl``); empty for other names.

        A name that is used without an import counts too, so that the missing import can be reported as such.
        """
        dotted = self.of(node)
        head, _, last = dotted.rpartition(".")
        if head == "kdbench" or head.startswith("kdbench."):
            return last
        return dotted if not head and dotted not in self.defined else ""

    def imported(self, node: ast.AST) -> bool:
        """Whether the first part of a name was imported."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and (self._star or node.id in self._meaning)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, those under ``if``, ``try`` and ``with`` included."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, inner, []))
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from _statements(handler.body)
