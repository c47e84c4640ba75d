"""Reading one Python file as a plugin: what it is, what it declares, and what is wrong with it."""

from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

from kdbench.discovery.cards import read_card
from kdbench.discovery.digests import method_digest
from kdbench.discovery.hooks import METHOD_HOOKS, PREFIX, check_method, read_hooks, specifications
from kdbench.discovery.literals import Names, Text
from kdbench.discovery.params import read_params
from kdbench.discovery.records import Flaw, Reading

MAX_BYTES = 1 << 20
"""Larger files are no plugins that a person wrote; they are refused before they are parsed."""

OWN = frozenset({"kdbench", "kdbench_methods"})


def read(path: Path) -> Reading:
    """Read a file. Raises ``OSError`` where it cannot be read; everything else that is wrong is a flaw."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    digest = hashlib.sha256(content).hexdigest()
    if len(content) > MAX_BYTES:
        flaw = Flaw(
            1, 1, f"the file is larger than {MAX_BYTES:,} bytes", "is this a plugin? keep data in files of its own"
        )
        return Reading("other", digest, (flaw,))
    try:
        source = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(errors="replace")
        position = before.count("\n") + 1, len(before) - before.rfind("\n")
        reason = f"byte 0x{content[error.start]:02x} is not UTF-8 text"
        return Reading("other", digest, (Flaw(*position, reason, "save the file as UTF-8"),))
    try:
        tree = ast.parse(source, filename=str(path))
        return _read_tree(tree, Text(source), method_digest(content, tree))
    except SyntaxError as error:
        flaw = Flaw(error.lineno or 1, max(error.offset or 1, 1), f"not valid Python: {error.msg}")
    except ValueError as error:
        flaw = Flaw(1, 1, f"not valid Python: {error}")
    except (RecursionError, MemoryError):
        flaw = Flaw(1, 1, "an expression is nested too deeply", "split it up")
    return Reading("other", digest, (flaw,))


def _read_tree(tree: ast.Module, text: Text, digest: str) -> Reading:
    names = Names(tree)
    flaws: list[Flaw] = []
    card = read_card(tree, names, text, flaws)
    hooks = read_hooks(tree, names, text, flaws)
    if not card.present:
        return _without_card(tree, names, text, hooks, flaws, digest)
    fields = read_params(tree, names, text, flaws)
    check_method(tree, hooks, text, flaws)
    return Reading(
        "method",
        digest,
        tuple(sorted(flaws)),
        card.card,
        card.line,
        card.track_position,
        card.slug,
        fields,
        ast.get_docstring(tree) or "",
        _imports(tree),
        hooks,
    )


def _without_card(
    tree: ast.Module, names: Names, text: Text, hooks: tuple[str, ...], flaws: list[Flaw], digest: str
) -> Reading:
    """An extension, a helper module, or a method that forgot its card."""
    doc = ast.get_docstring(tree) or ""
    if any(name.startswith(PREFIX) for name in hooks):
        for name in set(hooks) & set(METHOD_HOOKS):
            flaws.append(Flaw(1, 1, f"{name} does not belong into an extension", "put it into a module with a card"))
        return Reading("extension", digest, tuple(sorted(flaws)), doc=doc, hooks=hooks)
    near = [name for name in hooks if name not in specifications()]
    if set(hooks) & set(METHOD_HOOKS) or near:
        hint = "write PAPER = Paper(slug=..., title=..., year=..., track=..., tasks=[...]) at the top level"
        flaws.append(Flaw(1, 1, "there is no card", hint))
        return Reading("method", digest, tuple(sorted(flaws)), doc=doc, hooks=hooks)
    return Reading("other", digest, doc=doc)


def _imports(tree: ast.Module) -> tuple[str, ...]:
    """Packages that importing the module needs for certain: those of unconditional imports at its top level."""
    found: dict[str, None] = {}
    for node in tree.body:
        match node:
            case ast.Import(names=names):
                found.update(dict.fromkeys(alias.name.split(".")[0] for alias in names))
            case ast.ImportFrom(module=str() as module, level=0):
                found[module.split(".")[0]] = None
    return tuple(name for name in found if name not in sys.stdlib_module_names and name not in OWN)
