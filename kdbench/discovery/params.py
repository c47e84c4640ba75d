"""Parameters of a method, read from its source: types, defaults, ranges and meanings."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from kdbench.discovery.literals import Names, NotLiteral, Text, literal
from kdbench.discovery.records import Flaw, Method, ParamField
from kdbench.errors import Problem, UsageError, did_you_mean, in_order

if TYPE_CHECKING:
    from kdbench.params import Params
    from kdbench.yamlio import Document

NUMERIC = ("ge", "gt", "le", "lt", "multiple_of")
LENGTHS = ("min_length", "max_length")
SCALARS: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
ALLOWED = "allowed: int, float, bool, str, Literal[...], list[...], tuple[...], dict[str, ...] and unions with |"


# --- reading the source -----------------------------------------------------------------------------------------------


def read_params(tree: ast.Module, names: Names, text: Text, flaws: list[Flaw]) -> tuple[ParamField, ...]:
    """Fields of the class of a module that derives from ``Params``; empty where there is none."""
    classes = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(names.ours(base) == "Params" for base in node.bases)
    ]
    for extra in classes[1:]:
        flaws.append(text.flaw(extra, f"a second class of parameters, beside {classes[0].name}", "one per method"))
    if not classes:
        return ()
    found = classes[0]
    for base in found.bases:
        if names.ours(base) == "Params" and not names.imported(base):
            flaws.append(text.flaw(base, "Params is not imported", "write from kdbench import Params"))
    if len(found.bases) > 1 or found.keywords:
        flaws.append(text.flaw(found, f"{found.name} must derive from Params alone", f"class {found.name}(Params):"))
    if any(isinstance(node, ast.ClassDef) and _derives(node, found.name) for node in tree.body):
        flaws.append(text.flaw(found, f"another class derives from {found.name}", "declare all fields in one class"))
    result: list[ParamField] = []
    for node in found.body:
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.FunctionDef():
                continue
            case ast.AnnAssign(annotation=annotation) if names.of(_head(annotation)) == "typing.ClassVar":
                continue
            case ast.AnnAssign(target=ast.Name(id=name)):
                before = len(flaws)
                field = _read_field(name, node, names, text, flaws)
                if field is not None and len(flaws) == before:
                    result.append(field)
            case _:
                hint = "write every field as name: type = Field(default, description=...)"
                flaws.append(text.flaw(node, f"{_excerpt(node)!r} is not a field of parameters", hint))
    return tuple(result)


def _derives(node: ast.ClassDef, name: str) -> bool:
    return any(isinstance(base, ast.Name) and base.id == name for base in node.bases)


def _head(node: ast.expr) -> ast.expr:
    return node.value if isinstance(node, ast.Subscript) else node


def _excerpt(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:60]


def _read_field(name: str, node: ast.AnnAssign, names: Names, text: Text, flaws: list[Flaw]) -> ParamField | None:
    """One field, or None with the reasons added to ``flaws``."""

    def flaw(where: ast.AST, reason: str, hint: str = "") -> None:
        flaws.append(text.flaw(where, f"parameter {name}: {reason}", hint))

    if name.startswith("_"):
        flaw(node, "names of parameters do not begin with an underscore", f"call it {name.lstrip('_')}")
    kind: Any = None
    try:
        kind = annotation_type(node.annotation)
    except NotLiteral as error:
        flaw(error.node, str(error), ALLOWED)
    call = node.value
    if not isinstance(call, ast.Call) or names.ours(call.func) != "Field":
        shown = "0" if call is None else _excerpt(call)
        flaw(node, "has no description", f'write Field({shown}, description="...")')
        return None
    if not names.imported(call.func):
        flaw(call, "Field is not imported", "write from kdbench import Field")
    given: dict[str, ast.expr] = {}
    for position, argument in enumerate(call.args):
        given["default" if position == 0 else f"argument {position + 1}"] = argument
    for keyword in call.keywords:
        given["**" if keyword.arg is None else keyword.arg] = keyword.value
    known = ("default", "description", *NUMERIC, *LENGTHS)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key == "default_factory":
            flaw(value, "default_factory is not read without executing the module", "write the value itself as default")
        elif key not in known:
            flaw(value, f"Field has no {key!r} here", did_you_mean(key, known, label="allowed"))
        else:
            try:
                values[key] = literal(value)
            except NotLiteral as error:
                flaw(error.node, f"{key}: {error}", "parameters are read without executing the module; write the value")
    if "default" not in given and "default_factory" not in given:
        flaw(call, "has no default", "a method is judged at its declared defaults; write Field(default, ...)")
    description = values.get("description")
    if "description" not in given or ("description" in values and not _filled(description)):
        flaw(call, "has no description", 'add description="what it means, with its unit"')
    if kind is None or "default" not in values or not _filled(description):
        return None
    bounds = {key: value for key, value in values.items() if key in (*NUMERIC, *LENGTHS)}
    wrong = _bounds_problem(kind, bounds) or default_problem(kind, values["default"], bounds)
    if wrong:
        flaw(given["default"], wrong)
        return None
    return ParamField(name, ast.unparse(node.annotation), values["default"], bounds, str(description), node.lineno)


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def annotation_type(node: ast.expr) -> Any:
    """The type that an annotation means. Raises :class:`NotLiteral` for types that parameters may not have."""
    match node:
        case ast.Name(id=name) if name in SCALARS:
            return SCALARS[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[annotation_type(left), annotation_type(right)]  # noqa: UP007  # also for None and Literal
        case ast.Subscript(value=value, slice=inner):
            arguments = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
            match ast.unparse(value).removeprefix("typing."):
                case "Literal":
                    return Literal[tuple(_choice(argument) for argument in arguments)]
                case "list" if len(arguments) == 1:
                    return list[annotation_type(arguments[0])]  # type: ignore[misc]
                case "tuple":
                    return tuple[_members(arguments)]  # type: ignore[misc]
                case "dict" if len(arguments) == 2 and ast.unparse(arguments[0]) == "str":
                    return dict[str, annotation_type(arguments[1])]  # type: ignore[misc]
    raise NotLiteral(node, f"the type {ast.unparse(node)} is not allowed for a parameter")


def _members(arguments: list[ast.expr]) -> tuple[Any, ...]:
    if len(arguments) == 2 and isinstance(arguments[1], ast.Constant) and arguments[1].value is Ellipsis:
        return annotation_type(arguments[0]), ...
    return tuple(annotation_type(argument) for argument in arguments)


def _choice(node: ast.expr) -> Any:
    value = literal(node)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise NotLiteral(node, f"{ast.unparse(node)} cannot be a choice of Literal")


def _union(kind: Any) -> tuple[Any, ...]:
    """Members of a union without None; a type alone is a union of one."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(member for member in members if member is not NoneType)


def _bounds_problem(kind: Any, bounds: Mapping[str, Any]) -> str:
    for name, value in bounds.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (name in LENGTHS and (not isinstance(value, int) or value < 0)):
            return f"{name}={value!r} must be a number"
        fits = (int, float) if name in NUMERIC else (str, list, tuple, dict)
        for member in _union(kind):
            if (get_origin(member) or member) not in fits:
                return f"{name} does not apply to {_type_name(member)}"
    return ""


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


def default_problem(kind: Any, value: Any, bounds: Mapping[str, Any]) -> str:
    """What is wrong with a default, judged as pydantic judges JSON in strict mode; empty where nothing is.

    A check of its own because pydantic takes a third of the time in which methods have to be listed.
    """
    if not accepts(kind, value):
        return f"the default {value!r} is not of the type {_type_name(kind)}"
    if value is None:
        return ""
    tests: dict[str, Callable[[Any], bool]] = {
        "ge": lambda bound: value >= bound,
        "gt": lambda bound: value > bound,
        "le": lambda bound: value <= bound,
        "lt": lambda bound: value < bound,
        "multiple_of": lambda bound: bound != 0 and math.isclose(value / bound, round(value / bound), rel_tol=1e-9),
        "min_length": lambda bound: len(value) >= bound,
        "max_length": lambda bound: len(value) <= bound,
    }
    for name, bound in bounds.items():
        if not tests[name](bound):
            return f"the default {value!r} is outside of its own range {name}={bound!r}"
    return ""


def accepts(kind: Any, value: Any) -> bool:
    """Whether a value has a type: an integer is a float, a list is a tuple, a bool is neither int nor float.

    Choices are compared by value, as pydantic compares them: 1 is the choice ``True``, and becomes it.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is None or kind is NoneType:
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is bool or kind is str:
        return isinstance(value, kind)
    if origin is Literal:
        return any(value == choice for choice in arguments)
    if origin in (Union, UnionType):
        return any(accepts(member, value) for member in arguments)
    if origin is list:
        return isinstance(value, list) and all(accepts(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(accepts(arguments[1], item) for item in value.values())
    if origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(accepts(arguments[0], item) for item in value)
        return len(value) == len(arguments) and all(map(accepts, arguments, value))
    return False


# --- validating what a suite gives ------------------------------------------------------------------------------------


def build_model(method: Method) -> type[Params]:
    """The pydantic model of a method's parameters. Raises ``UsageError`` where pydantic refuses the declaration."""
    from pydantic import create_model
    from pydantic.errors import PydanticUserError

    from kdbench.params import Field, Params

    fields: dict[str, Any] = {}
    for field in method.fields:
        kind = annotation_type(ast.parse(field.annotation, mode="eval").body)
        fields[field.name] = (kind, Field(field.default, description=field.description, **field.bounds))
    name = "".join(part.capitalize() for part in method.slug.replace("-", "_").split("_")) + "Params"
    try:
        return create_model(name, __base__=Params, __doc__=f"Parameters of {method.key}.", **fields)
    except (PydanticUserError, TypeError, NameError, ValueError) as error:
        place = f"{method.path}:{method.fields[0].line if method.fields else method.line}"
        raise UsageError(f"the parameters of {method.key} cannot be used: {error}", place=place) from error


_models: dict[tuple[str, str], type[Params]] = {}
"""Models by path and digest of the method's file: a plan validates thousands of cells."""


def model_of(method: Method) -> type[Params]:
    """As :func:`build_model`, made once per content of a file."""
    key = (str(method.path), method.digest)
    if key not in _models:
        _models[key] = build_model(method)
    return _models[key]


def canonical(method: Method, params: Mapping[str, Any] | Document) -> dict[str, Any]:
    """Every parameter as JSON values. Raises ``UsageError`` with one problem per wrong parameter."""
    from pydantic import ValidationError

    from kdbench.yamlio import Document, problems_of

    document = params if isinstance(params, Document) else Document.of(dict(params), f"params of {method.key}")
    model = model_of(method)
    given = {field.name: field.default for field in method.fields}
    unknown = [no_parameter(method, name, document.place((name,), key=True)) for name in document.data.keys() - given]
    given.update((name, value) for name, value in document.data.items() if name in given)
    try:
        text = json.dumps(given)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"parameters are numbers, texts, truth values, lists and mappings: {error}"
        raise UsageError(message, place=document.place(())) from error
    try:
        # JSON mode: lists are tuples, but texts are no numbers and truth values neither
        values = model.model_validate_json(text, strict=True).model_dump(mode="json")
    except ValidationError as error:
        raise UsageError(in_order([*unknown, *problems_of(error, document, model=model)])) from error
    if unknown:
        raise UsageError(in_order(unknown))
    return values


def no_parameter(method: Method, name: str, place: str) -> Problem:
    """What is wrong with the name of a parameter that a method does not have."""
    hint = did_you_mean(name, [field.name for field in method.fields], label="parameters")
    return Problem(place, f"{method.key} has no parameter {name!r}", hint if method.fields else "it has none at all")
