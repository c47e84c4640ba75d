"""Pydantic models as tables of their fields: the keys of a suite, and what a suite may override of a task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, BeforeValidator

from kdbench.wording import docstrings
from kdbench_docs.markdown import code, table, text

_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}

_READ_BY = {
    "_memory": "size or null",
    "_timeout": "time or null",
    "_seeds": "integer or list of integers",
    "_several": "{} or one of them",
}
"""What a file may say where a validator reads it before the type applies, by the validator's name."""


def models(root: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and all that its fields hold, each once, in the order in which they appear."""
    found = [root]
    for model in found:
        for field in model.model_fields.values():
            found += [inner for inner in dict.fromkeys(_inside(field.annotation)) if inner not in found]
    return found


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _inside(argument)


def sections(root: type[BaseModel], level: int, titles: dict[str, str]) -> str:
    """Every model of :func:`models` under a heading of its own; ``titles`` by name of class, else the class's."""
    parts = []
    for model in models(root):
        title = titles.get(model.__name__, model.__name__)
        parts.append(f"{'#' * level} {title}\n\n{text(model.__doc__ or '')}\n\n{fields(model, titles)}\n")
    return "\n".join(parts)


def fields(model: type[BaseModel], titles: dict[str, str]) -> str:
    """The fields of one model: name, type, default, meaning."""
    schema = model.model_json_schema(mode="validation")
    docs = docstrings(model)
    names = {name: titles.get(name, name) for name in schema.get("$defs", {})}
    rows = []
    for name, part in schema.get("properties", {}).items():
        field = model.model_fields[name]
        kind = _kind(part, names)
        for validator in field.metadata:
            if isinstance(validator, BeforeValidator):
                kind = _READ_BY[validator.func.__name__].format(kind)
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        rows.append([code(name), text(kind), default, text(docs.get(name, ""))])
    return table(["key", "type", "default", "meaning"], rows)


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
        if not value:
            return "its own defaults"
    return code(json.dumps(value, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def _kind(part: dict[str, Any], names: dict[str, str]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in part:
        return names[part["$ref"].rsplit("/", 1)[-1]]
    for several in ("anyOf", "oneOf"):
        if several in part:
            return " or ".join(dict.fromkeys(_kind(branch, names) for branch in part[several]))
    if "const" in part:
        return f"``{part['const']}``"
    if "enum" in part:
        return ", ".join(f"``{value}``" for value in part["enum"])
    kind = {"string": "text", "object": "mapping", "array": "list", "boolean": "true or false"}.get(
        part.get("type", ""), part.get("type", "anything")
    )
    if kind == "list" and "items" in part:
        kind = f"list of {_kind(part['items'], names)}"
    if kind == "list" and "prefixItems" in part:
        kind = "[" + ", ".join(_kind(item, names) for item in part["prefixItems"]) + "]"
    if kind == "mapping" and isinstance(part.get("additionalProperties"), dict):
        kind = f"mapping to {_kind(part['additionalProperties'], names)}"
    bounds = [
        shown.format(f"{part[name]:g}" if part[name] < 1e6 else part[name])
        for name, shown in _BOUNDS.items()
        if name in part
    ]
    return f"{kind} ({', '.join(bounds)})" if bounds else kind
