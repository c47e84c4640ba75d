"""Hook implementations of a module, checked against the hook specifications without executing the module."""

from __future__ import annotations

import ast
from functools import lru_cache

from kdbench.discovery.literals import Names, Text
from kdbench.discovery.records import Flaw
from kdbench.errors import did_you_mean

METHOD_HOOKS = ("train", "evaluate")
PREFIX = "kdbench_"


@lru_cache
def specifications() -> dict[str, tuple[str, ...]]:
    """Names of all hooks and of their arguments, in the order of the specifications."""
    import inspect

    from kdbench import hookspecs

    groups = (hookspecs.MethodHooks, hookspecs.ContributionHooks, hookspecs.EventHooks)
    return {
        name: tuple(inspect.signature(function).parameters)[1:]
        for group in groups
        for name, function in vars(group).items()
        if callable(function) and not name.startswith("__")
    }


def read_hooks(tree: ast.Module, names: Names, text: Text, flaws: list[Flaw]) -> tuple[str, ...]:
    """Names of the functions that are decorated with ``hookimpl``, unknown ones included.

    Adds to ``flaws``: misspelt names, unknown arguments, arguments that would never be passed.
    """
    specs = specifications()
    found: dict[str, ast.AST] = {}
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        decorator = _decorator(node, names, text, flaws)
        if decorator is None:
            continue
        name = _specname(decorator) or node.name
        if name in found:
            flaws.append(text.flaw(node, f"a second implementation of {name} in one module", "keep one of them"))
        found[name] = node
        if name not in specs:
            flaws.append(
                text.flaw(node, f"{name} is no hook of kdbench", did_you_mean(name, list(specs), label="hooks"))
            )
            continue
        if isinstance(node, ast.AsyncFunctionDef):
            flaws.append(text.flaw(node, f"{name} must not be async", f"write def {name}"))
        _check_arguments(node, name, specs[name], text, flaws)
    return tuple(found)


def check_method(tree: ast.Module, hooks: tuple[str, ...], text: Text, flaws: list[Flaw]) -> None:
    """Adds to ``flaws`` what a module with a card lacks as a method."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for name in METHOD_HOOKS:
        if name in functions and name not in hooks:
            flaws.append(text.flaw(functions[name], f"{name} is not decorated", "write @hookimpl above it"))
    misspelt = any(name not in specifications() for name in hooks)
    if "train" not in hooks and "train" not in functions and not misspelt:
        hint = "write @hookimpl and def train(task, params) at the top level of the module"
        flaws.append(Flaw(1, 1, "there is no train hook", hint))
    for name in hooks:
        if name.startswith(PREFIX) and name in specifications():
            hint = "put it into a module of its own, without a card"
            flaws.append(text.flaw(functions.get(name, tree), f"{name} does not belong into a method", hint))


def _decorator(
    node: ast.FunctionDef | ast.AsyncFunctionDef, names: Names, text: Text, flaws: list[Flaw]
) -> ast.expr | None:
    for decorator in node.decorator_list:
        function = decorator.func if isinstance(decorator, ast.Call) else decorator
        if names.ours(function) == "hookimpl":
            if not names.imported(function):
                flaws.append(text.flaw(decorator, "hookimpl is not imported", "write from kdbench import hookimpl"))
            return decorator
    return None


def _specname(decorator: ast.expr) -> str:
    for keyword in decorator.keywords if isinstance(decorator, ast.Call) else ():
        if (
            keyword.arg == "specname"
            and isinstance(keyword.value, ast.Constant)
            and isinstance(keyword.value.value, str)
        ):
            return keyword.value.value
    return ""


def _check_arguments(
    node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, known: tuple[str, ...], text: Text, flaws: list[Flaw]
) -> None:
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    for argument in plain:
        if argument.arg not in known:
            hint = did_you_mean(argument.arg, known, label=f"arguments of {name}")
            flaws.append(text.flaw(argument, f"{name} has no argument {argument.arg!r}", hint))
    for argument in plain[len(plain) - len(arguments.defaults) :]:
        if argument.arg in known:
            reason = f"the argument {argument.arg!r} of {name} has a default, so that it is never passed"
            flaws.append(text.flaw(argument, reason, "remove the default"))
    for argument in arguments.kwonlyargs:
        flaws.append(text.flaw(argument, f"the argument {argument.arg!r} of {name} is keyword-only", "remove the '*'"))
    for variable in (arguments.vararg, arguments.kwarg):
        if variable is not None:
            reason = f"{name} takes *{variable.arg}, which is never filled"
            flaws.append(text.flaw(variable, reason, f"name the arguments: {', '.join(known)}"))
