"""What pydantic found wrong, in plain words and with the place in the file that wrote the value.

Each problem names the key, what it holds and what was expected, with all bounds of the field and a suggestion for
words that look misspelt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from kdbench.errors import Problem, did_you_mean

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from kdbench.yamlio import Document

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of reasonable size",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "decimal_type": "a number",
    "decimal_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "iterable_type": "a list",
    "dict_type": "a mapping of keys to values",
    "mapping_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dataclass_type": "a mapping of keys to values",
    "none_required": "null",
}
_BOUNDS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "multiple_of": "a multiple of {}",
}
_BOUND_TYPES = {
    "greater_than": "gt",
    "greater_than_equal": "ge",
    "less_than": "lt",
    "less_than_equal": "le",
    "multiple_of": "multiple_of",
}
_LENGTHS = {"too_short": "min_length", "string_too_short": "min_length"} | {
    "too_long": "max_length",
    "string_too_long": "max_length",
}
_YES_NO = {"yes", "no", "on", "off", "y", "n"}
_QUOTED_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9_]*)?(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?\Z")


def found(value: Any) -> str:
    """What a value is, for a message: ``the text 'abc'``, ``the number 3``, ``a list of 2 items``."""
    match value:
        case None:
            return "null (nothing)"
        case bool():
            return f"the truth value {str(value).lower()}"
        case int() | float():
            return f"the number {value!r}"
        case str():
            return f"the text {value if len(value) <= 40 else value[:37] + '...'!r}"
        case Mapping():
            keys = ", ".join(map(str, list(value)[:4])) + (", ..." if len(value) > 4 else "")
            return f"a mapping with the keys {keys}" if value else "an empty mapping"
        case list() | tuple():
            return f"a list of {len(value)} item{'s' * (len(value) != 1)}" if value else "an empty list"
    return f"a value of type {type(value).__name__}"


def has(data: Any, part: str | int) -> bool:
    """Whether ``data[part]`` is a value of a mapping or a list."""
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data)


def name_of(loc: Sequence[str | int]) -> str:
    """A location for people: ``methods[2].params.alpha``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def problems_of(
    error: ValidationError, document: Document, prefix: Sequence[str | int] = (), model: Any = None
) -> list[Problem]:
    """Every problem of a validation, in the order of the places.

    ``prefix`` is where in ``document`` the validated data stands. ``model`` is what it was validated against (a
    pydantic model or a type); with it, messages name all bounds of a field and suggest known keys. What several
    branches of a union say about one value becomes one problem.
    """
    grouped: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    loose: list[tuple[tuple[str | int, ...], Problem]] = []
    everything = error.errors(include_url=False)
    unknown = {tuple(details["loc"]) for details in everything if details["type"] == "extra_forbidden"}
    for details in everything:
        loc, rest = _locate(document.data, (*prefix, *details["loc"]))
        kind = details["type"]
        if kind == "missing":
            if not _misspelt(loc, str(details["loc"][-1]), unknown):
                loose.append((loc, _missing(details, document, loc, model, prefix)))
        elif kind == "extra_forbidden":
            loose.append((loc, _extra(details, document, loc, model, prefix)))
        else:
            grouped.setdefault((*loc, "[key]") if "[key]" in rest else loc, []).append(details)
    for loc, several in grouped.items():
        loose.append((loc, _wrong(several, document, loc, model, prefix)))
    loose.sort(key=lambda pair: document.mark(pair[0])[1:])
    return list(dict.fromkeys(problem for _, problem in loose))


def _locate(data: Any, loc: Sequence[str | int]) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
    """Split a pydantic location into what exists in the data and the rest: names of union branches, missing keys."""
    known: list[str | int] = []
    rest: list[str | int] = []
    for part in loc:
        if has(data, part):
            known.append(part)
            data = data[part]
        else:
            rest.append(part)
    return tuple(known), tuple(rest)


def _misspelt(loc: Sequence[str | int], key: str, unknown: Collection[tuple[str | int, ...]]) -> bool:
    """Whether a key of one mapping is missing because it stands there misspelt: then one problem says it all."""
    beside = [str(other[-1]) for other in unknown if other[:-1] == tuple(loc)]
    return bool(get_close_matches(key, beside, n=1, cutoff=0.6))


def _missing(
    details: ErrorDetails, document: Document, loc: Sequence[str | int], model: Any, prefix: Sequence[str | int]
) -> Problem:
    key = str(details["loc"][-1])
    where = f" in '{name_of(loc)}'" if loc else ""
    annotation, metadata = _field(model, (*loc, key)[len(prefix) :])
    expected = _described(annotation, metadata)
    message = f"the key '{key}' is missing{where}" + (f"; {expected} was expected" if expected else "")
    description = _description(model, (*loc, key)[len(prefix) :])
    return Problem(document.place(loc), message, description)


def _extra(
    details: ErrorDetails, document: Document, loc: Sequence[str | int], model: Any, prefix: Sequence[str | int]
) -> Problem:
    key = str(details["loc"][-1])
    parent = loc[:-1]
    where = f" in '{name_of(parent)}'" if parent else ""
    known = _keys(model, parent[len(prefix) :])
    hint = did_you_mean(key, known, label="known keys") if known else ""
    return Problem(document.place(loc, key=True), f"unknown key '{key}'{where}", hint)


def _wrong(
    several: list[ErrorDetails],
    document: Document,
    loc: tuple[str | int, ...],
    model: Any,
    prefix: Sequence[str | int],
) -> Problem:
    of_key = loc[-1:] == ("[key]",)
    loc = loc[:-1] if of_key else loc
    value = several[0]["input"]
    # a shorthand may have been written out before validation: then the file does not have the whole location
    whole = several[0]["loc"]
    annotation, metadata = _field(model, whole)
    if annotation is None:  # names of the branches of a union are no part of the model
        annotation, metadata = _field(model, loc[len(prefix) :])
    written_out = whole and not of_key and str(whole[-1]) in _keys(model, whole[:-1])
    name = name_of((*prefix, *whole) if written_out else loc) or "the file"
    place = document.place(loc, key=of_key)
    own = [str(d["ctx"]["error"]) for d in several if d["type"] in ("value_error", "assertion_error") and "ctx" in d]
    if own:
        said = " or ".join(dict.fromkeys(own))
        return Problem(place, f"'{name}': {said}" if loc or written_out else said)
    wanted = " or ".join(dict.fromkeys(_expected(details, metadata) for details in several))
    subject = f"the key '{name}'" if of_key else f"'{name}'"
    return Problem(place, f"{subject} must be {wanted}, but is {found(value)}", _hint(several, value, annotation))


def _expected(details: ErrorDetails, metadata: Sequence[Any]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"a mapping with {context['discriminator']}" + (
            f" {context['expected_tags']}" if "expected_tags" in context else ""
        )
    if kind in _BOUND_TYPES:
        name = _BOUND_TYPES[kind]
        return _bounds(metadata) or _BOUNDS[name].format(_number(context[name]))
    if kind in _LENGTHS:
        name = _LENGTHS[kind]
        unit = ("character" if kind.startswith("string") else "item") + "s" * (context[name] != 1)
        return f"{'at least' if name == 'min_length' else 'at most'} {context[name]} {unit} long"
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    return f"valid ({details['msg']})"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bounds(metadata: Sequence[Any]) -> str:
    given = {name: getattr(item, name) for item in metadata for name in _BOUNDS if hasattr(item, name)}
    return " and ".join(text.format(_number(given[name])) for name, text in _BOUNDS.items() if name in given)


def _hint(several: list[ErrorDetails], value: Any, annotation: Any) -> str:
    if not isinstance(value, str):
        return ""
    kinds = {details["type"] for details in several}
    words = [word for literal in _literals(annotation) if isinstance(word := literal, str)]
    if kinds & {"literal_error", "enum"} and words:
        return did_you_mean(value, words, label="allowed")
    if any(kind.startswith("bool") for kind in kinds) and value.lower() in _YES_NO:
        return "write true or false; yes, no, on and off are text in YAML 1.2"
    if any(kind.startswith(("int", "float")) for kind in kinds) and value.strip() and _QUOTED_NUMBER.match(value):
        return "write the number without quotes and without underscores"
    return ""


# --- what a model says about a location ------------------------------------------------------------------------------


def _is_model(annotation: Any) -> bool:
    # not issubclass: files are read without importing pydantic where nothing is validated
    return isinstance(annotation, type) and hasattr(annotation, "model_fields")


def _branches(annotation: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The types that an annotation stands for, each with the constraints of its ``Annotated``."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        # a Field within Annotated holds its constraints itself
        flat = [part for item in metadata for part in getattr(item, "metadata", (item,))]
        for branch, more in _branches(inner):
            yield branch, [*flat, *more]
    elif get_origin(annotation) in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _branches(argument)
    else:
        yield annotation, []


def _field(model: Any, loc: Sequence[str | int]) -> tuple[Any, list[Any]]:
    """Annotation and constraints of a location below a model; ``(None, [])`` where the model says nothing."""
    if model is None:
        return None, []
    if not loc:
        return model, [item for _, metadata in _branches(model) for item in metadata]
    part, rest = loc[0], loc[1:]
    for branch, _ in _branches(model):
        if _is_model(branch):
            info = branch.model_fields.get(str(part))
            if info is not None:
                annotation, metadata = _field(info.annotation, rest)
                return annotation, [*metadata, *info.metadata] if not rest else metadata
        origin, arguments = get_origin(branch), get_args(branch)
        if origin is dict and len(arguments) == 2:
            return _field(arguments[1], rest)
        if origin in (list, set, frozenset) and arguments and isinstance(part, int):
            return _field(arguments[0], rest)
        if origin is tuple and arguments and isinstance(part, int):
            index = 0 if arguments[-1] is Ellipsis else min(part, len(arguments) - 1)
            return _field(arguments[index], rest)
    return None, []


def _keys(model: Any, loc: Sequence[str | int]) -> list[str]:
    annotation, _ = _field(model, loc)
    return [name for branch, _ in _branches(annotation) if _is_model(branch) for name in branch.model_fields]


def _description(model: Any, loc: Sequence[str | int]) -> str:
    owner, _ = _field(model, loc[:-1])
    for branch, _ in _branches(owner):
        if _is_model(branch):
            text = docstrings(branch).get(str(loc[-1]), "")
            if text:
                return text.strip().splitlines()[0].rstrip(".").replace("``", "'")
    return ""


@cache
def docstrings(model: type) -> dict[str, str]:
    """The texts below a model's fields, by field; empty for a model without source.

    pydantic would read them for every model that is defined, which takes more time than all the rest of a command.
    """
    import ast  # these three only for a message: every command reads YAML
    import inspect
    import textwrap

    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not _is_model(owner):
            continue
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        except (OSError, TypeError):
            continue
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                value = text.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[field.target.id] = value.value
    return found


def _literals(annotation: Any) -> list[Any]:
    return [word for branch, _ in _branches(annotation) if get_origin(branch) is Literal for word in get_args(branch)]


def _described(annotation: Any, metadata: Sequence[Any]) -> str:
    words = []
    for branch, _ in _branches(annotation):
        origin = get_origin(branch) or branch
        if origin is Literal:
            words.append("one of " + ", ".join(repr(word) for word in get_args(branch)))
        elif isinstance(origin, type) and origin is not NoneType:
            words.append(_TYPE_WORDS.get(origin, "a mapping of keys to values" if _is_model(origin) else ""))
    text = " or ".join(dict.fromkeys(word for word in words if word))
    bounds = _bounds(metadata)
    return f"{text} {bounds}" if text and bounds else text


_TYPE_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping of keys to values",
}
