"""Names of methods and packages: what Python, pip and the registry take."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kdbench.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from kdbench.registry import Registry

LONGEST = {"method": 40, "package": 32}
"""Characters of a name."""


def require_method(name: str, registry: Registry, track: str) -> None:
    """Raise ``UsageError`` unless ``name`` can be the slug of a new method of ``track``, and of its module."""
    _require(name, name, "method")
    taken = registry.methods.get(f"{track}/{name}")
    if taken is not None:
        hint = f"it is in {taken.path}; choose another name"
        raise UsageError(f"there is a method {taken.key} already", place="NAME", hint=hint)


def require_package(name: str) -> str:
    """The import name of a new distribution ``name``. Raises ``UsageError`` where it cannot be one."""
    module = re.sub(r"[-.]", "_", name)
    _require(name, module, "package")
    require_unused(module)
    return module


def require_unused(module: str) -> None:
    """Raise ``UsageError`` where ``import module`` would find something that is installed."""
    if module in sys.stdlib_module_names or find_spec(module) is not None:
        raise UsageError(f"{module!r} is a module of this Python already", place="NAME", hint="choose another name")


def require_track(name: str, registry: Registry) -> None:
    """Raise ``UsageError`` for a track that is not there."""
    if name not in registry.tracks:
        hint = did_you_mean(name, list(registry.tracks), label="tracks")
        raise UsageError(f"there is no track {name!r}", place="--track", hint=hint)


def _require(name: str, module: str, kind: str) -> None:
    longest = LONGEST[kind]
    problem = ""
    if re.fullmatch(r"[a-z][a-z0-9_]*", module) is None or not module[-1].isalnum():
        problem = "must be lower-case letters, digits and " + ("'_'" if kind == "method" else "'-'")
    elif keyword.iskeyword(module) or keyword.issoftkeyword(module):
        problem = "is a word of Python"
    elif len(name) > longest:
        problem = f"has {len(name)} characters; at most {longest} were expected"
    if problem:
        raise UsageError(f"the name {name!r} of a {kind} {problem}", place="NAME", hint=_proposal(name, kind))


def _proposal(name: str, kind: str) -> str:
    """A hint with what may have been meant; empty where nothing is left of the name."""
    joint = "_" if kind == "method" else "-"
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower())
    near = joint.join(words).lstrip("0123456789_-")[: LONGEST[kind]].rstrip("_-")
    return f"such as {near!r}" if near and not keyword.iskeyword(near) and near != name else "choose another name"


def title_of(name: str) -> str:
    """``my_idea`` as a title: ``My idea``."""
    words = re.sub(r"[-_.]+", " ", name)
    return words[:1].upper() + words[1:]


def params_of(slug: str) -> str:
    """Name of the class of a method's parameters: ``MyIdeaParams``."""
    return "".join(word[:1].upper() + word[1:] for word in slug.split("_")) + "Params"
