"""What the functions of a training hold, and whether it changed: state that a checkpoint would miss.

A job that is started again runs ``train`` from the top, so whatever a loss or an ``on_step`` holds is as it was when
``task.fit`` was called. A checkpoint is therefore right if all that they hold still has the value of that moment, or
is put back by somebody. This module looks at closures, defaults, attributes, containers and the globals of the
method's own file, at the start and again before each checkpoint, and compares values.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from copyreg import _slotnames  # type: ignore[attr-defined]
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from logging import Logger
from pathlib import PurePath
from re import Pattern
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MappingProxyType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.training.state import Stateful

HEAP = 1 << 9
"""``Py_TPFLAGS_HEAPTYPE``: a class that was made while the program runs, as by a ``class`` statement."""
COMPILED = (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType, BuiltinFunctionType)
"""What classes that come from other languages are made of."""
LARGEST = 200_000
"""Objects that are looked at; where there are more, nothing is said to be unchanged."""

NUMBERS = (NoneType, bool, int, float, complex, str, bytes, np.generic)
"""Compared by what they print; this also makes NaN equal to itself."""
FIXED = (
    torch.dtype,
    torch.device,
    torch.Size,
    torch.layout,
    torch.memory_format,
    np.dtype,
    range,
    slice,
    PurePath,
    Pattern,
    Enum,
    date,
    time,
    timedelta,
    Decimal,
    Fraction,
    Logger,
    ModuleType,
    CodeType,
    type(Ellipsis),
)
"""What cannot change."""
FRAME = frozenset(vars(nn.Module())) - {"training"}
"""Attributes in which every module keeps what it is made of."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_rng(value: object) -> bool:
    """Whether it is a random generator of torch, numpy or Python."""
    return isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random)


class Inspection:
    """Values that some functions hold, at the time when this is made."""

    def __init__(
        self,
        roots: Mapping[str, object],
        *,
        networks: Iterable[nn.Module] = (),
        kept: Iterable[object] = (),
        skipped: Iterable[object] = (),
        more: Callable[[], Mapping[str, object]] = dict,
        home: str = "",
    ) -> None:
        """``roots`` are the functions by name, ``more()`` gives further roots as they are at the time.

        ``networks`` and ``kept`` are put back by others: of the former only attributes count that are neither weights
        nor buffers, of the latter only functions. ``skipped`` does not count at all. ``home`` is the file whose
        globals count as well.
        """
        self.roots = {**roots, **{f"network {i}": network for i, network in enumerate(networks)}}
        self.networks, self.kept, self.skipped, self.home = list(networks), list(kept), list(skipped), home
        self.more = more
        self.start = self._look()

    def _look(self) -> _Look:
        look = _Look(self.networks, self.kept, self.skipped, self.home)
        for name, root in {**self.roots, **self.more()}.items():
            look.root = name
            look.value(root, "")
        return look

    def changed(self) -> str | None:
        """What is not as it was or cannot be compared, and where it is; None where nothing is."""
        if self.start.blind:
            return self.start.blind
        now = self._look()
        if now.blind:
            return now.blind
        before = self.start.seen
        for place, value in now.seen.items():
            if place not in before or before[place] != value:
                return f"{_show(place)} changes while it trains"
        gone = next((place for place in before if place not in now.seen), None)
        return f"{_show(gone)} changes while it trains" if gone is not None else None


def reaches(value: object, networks: Iterable[nn.Module]) -> bool:
    """Whether a loader can get at one of the networks: what it gives may then depend on their weights."""
    look = _Look((), (), (), "")
    look.stop_at = {id(module) for network in networks for module in network.modules()}
    look.lenient = True
    look.value(value, "")
    return look.stopped


def content_digest(value: object) -> str:
    """Digest of all numbers, texts, tensors and arrays that a value holds: equal values have equal ones."""
    look = _Look((), (), (), "")
    look.lenient = True
    look.value(value, "")
    # addresses, the only whole numbers among them, differ from process to process
    notes = [note for notes in look.seen.values() for note in notes if not isinstance(note, int)]
    return hashlib.blake2b(repr(notes).encode(), digest_size=16).hexdigest()


def _show(place: tuple[str, str]) -> str:
    root, path = place
    return f"`{path}` in {root}" if path else root


class _Look:
    """One walk over everything that can be reached."""

    def __init__(
        self, networks: Iterable[nn.Module], kept: Iterable[object], skipped: Iterable[object], home: str
    ) -> None:
        self.root = ""
        self.home = home
        self.seen: dict[tuple[str, str], list[Hashable]] = {}
        self.blind = ""
        """Why something cannot be compared."""
        self.stop_at: set[int] = set()
        self.stopped = False
        self.lenient = False
        """Whether what does not show its changes is taken to be fixed, as the inner parts of networks are."""
        self._kept = {id(value) for value in kept}
        self._skipped = {id(value) for value in skipped}
        self._trained = {id(module) for network in networks for module in network.modules()}
        self._met: dict[int, str] = {}
        self._alive: list[object] = []  # an address tells who someone is only as long as that one lives

    def note(self, path: str, value: Hashable) -> None:
        self.seen.setdefault((self.root, path), []).append(value)

    def cannot(self, path: str, why: str) -> None:
        self.blind = self.blind or f"{_show((self.root, path))} {why}"

    def value(self, value: Any, path: str) -> None:
        """Take note of a value and of all that it holds."""
        if isinstance(value, NUMBERS):
            self.note(path, (type(value), repr(value)))
            return
        if isinstance(value, FIXED) or id(value) in self._skipped or self.blind or self.stopped:
            return
        if id(value) in self._met:
            self.note(path, ("same", self._met[id(value)]))
            return
        if id(value) in self.stop_at:
            self.stopped = True
            return
        if len(self._alive) >= LARGEST:
            self.cannot(path, "holds more than can be looked at")
            return
        self._met[id(value)] = path
        self._alive.append(value)
        try:
            self._any(value, path)
        except RecursionError:
            self.cannot(path, "holds more than can be looked at")

    def _any(self, value: Any, path: str) -> None:
        if id(value) in self._kept:
            self._functions_of(value, path)
        elif isinstance(value, FunctionType):
            self._function(value, path)
        elif isinstance(value, MethodType):
            self.value(value.__self__, path)
            self.value(value.__func__, path)
        elif isinstance(value, BuiltinFunctionType):
            self.value(value.__self__, path)
        elif isinstance(value, partial):
            self.note(path, id(value.func))
            for part in (value.func, value.args, value.keywords):
                self.value(part, path)
        elif isinstance(value, nn.Module):
            self._module(value, path)
        elif isinstance(value, Tensor | np.ndarray):
            self._array(value, path)
        elif is_rng(value):
            self._rng(value, path)
        elif isinstance(value, dict | MappingProxyType | list | tuple | deque | set | frozenset):
            self._container(value, path)
            self._attributes(value, path)
        elif isinstance(value, type):
            self.note(path, id(value))
        elif isinstance(value, GeneratorType) or (isinstance(value, Iterator) and not _has_attributes(value)):
            self._iterator(value, path)
        elif hasattr(value, "__wrapped__") and callable(value):  # functools.cache and its like
            self.value(value.__wrapped__, path)
        elif _has_attributes(value):
            self.note(path, str(type(value)))
            self._attributes(value, path)
        elif self.lenient:
            self.note(path, id(value))
        else:
            self.cannot(path, f"is a {type(value).__module__}.{type(value).__qualname__}, which does not show changes")

    # --- kinds ------------------------------------------------------------------------------------------------------

    def _functions_of(self, value: Any, path: str) -> None:
        """What somebody puts back may call functions that hold something of their own."""
        for name, part in _attributes(value):
            if callable(part) or is_rng(part) or isinstance(part, Stateful):
                if isinstance(part, Stateful) and not isinstance(part, nn.Module):
                    self._kept.add(id(part))
                self.value(part, _join(path, name))

    def _function(self, value: FunctionType, path: str) -> None:
        self.note(path, id(value.__code__))
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:
                continue  # not bound yet
            self.value(content, _join(path, name))
        self.value(value.__defaults__, path)
        self.value(value.__kwdefaults__, path)
        for name, part in vars(value).items():
            self.value(part, _join(path, name))
        if self.home and value.__code__.co_filename == self.home:
            for name in _names(value.__code__):
                if name in value.__globals__:
                    self.value(value.__globals__[name], name)

    def _module(self, value: nn.Module, path: str) -> None:
        """Attributes beside the weights; the weights, too, unless somebody puts them back."""
        lenient, self.lenient = self.lenient, True
        trained = id(value) in self._trained
        self.note(path, id(value))
        for name, part in vars(value).items():
            if name not in FRAME:
                self.value(part, _join(path, name))
        for hooks in HOOKS:
            for part in vars(value).get(hooks, {}).values():
                self.value(part, path)
        for name, tensor in (*value._parameters.items(), *value._buffers.items()):
            if tensor is None:
                continue
            if trained:
                self.note(_join(path, name), tensor.requires_grad)
            else:
                self.value(tensor, _join(path, name))
        for name, child in value._modules.items():
            self.value(child, _join(path, name))
        self.lenient = lenient

    def _array(self, value: Tensor | np.ndarray[Any, Any], path: str) -> None:
        if self.stop_at:
            return
        try:
            array = value if isinstance(value, np.ndarray) else _bytes_of(value)
            content = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
        except (RuntimeError, TypeError, ValueError, BufferError) as error:  # sparse, nested, made of objects ...
            self.cannot(path, f"cannot be compared: {error}")
            return
        self.note(path, (type(value), str(value.dtype), tuple(value.shape), content))

    def _rng(self, value: Any, path: str) -> None:
        if isinstance(value, torch.Generator):
            state = hashlib.blake2b(value.get_state().numpy().tobytes()).digest()
        elif isinstance(value, np.random.Generator):
            state = hashlib.blake2b(repr(value.bit_generator.state).encode()).digest()
        else:
            numbers = value.get_state() if isinstance(value, np.random.RandomState) else value.getstate()
            state = hashlib.blake2b(repr(numbers).encode()).digest()
        self.note(path, state)

    def _container(self, value: Any, path: str) -> None:
        self.note(path, (type(value), len(value)))
        if isinstance(value, set | frozenset):
            for part in value:
                self.value(part, f"{path}{{{part!r}}}" if isinstance(part, NUMBERS) else f"{path}{{{id(part)}}}")
        elif isinstance(value, dict | MappingProxyType):
            for key, part in value.items():
                name = repr(key) if isinstance(key, NUMBERS) else f"<{id(key)}>"
                if not isinstance(key, NUMBERS):
                    self.value(key, f"{path}[{name}] as a key")
                self.value(part, f"{path}[{name}]")
        else:
            for index, part in enumerate(value):
                self.value(part, f"{path}[{index}]")

    def _iterator(self, value: Any, path: str) -> None:
        """Its position does not show. A loader may be one: who asks whether it reaches a network sees its variables."""
        if not self.stop_at:
            self.cannot(path, "is an iterator, whose position does not show (kdbench.training.loaders.cycle shows it)")
        elif isinstance(value, GeneratorType):
            for name, part in (value.gi_frame.f_locals if value.gi_frame is not None else {}).items():
                self.value(part, name)
        elif isinstance(value, map | zip | filter | enumerate):
            for part in value.__reduce__()[1]:
                self.value(part, path)

    def _attributes(self, value: Any, path: str) -> None:
        for name, part in _attributes(value):
            self.value(part, _join(path, name))
        for kind in type(value).__mro__:
            if kind.__module__.partition(".")[0] not in ("torch", "kdbench", "builtins", "collections", "typing"):
                for name, part in vars(kind).items():
                    if isinstance(part, list | dict | set | deque | Tensor | np.ndarray) and not name.startswith("__"):
                        self.value(part, _join(path, name))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _names(code: CodeType) -> Iterator[str]:
    """Names that a function and those inside it may look up among the globals."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for name in _slotnames(type(value)):
        if hasattr(value, name):
            yield name, getattr(value, name)


def _has_attributes(value: Any) -> bool:
    """Whether all that it holds is in attributes: its class and those above it are written in Python."""
    return isinstance(value, SimpleNamespace) or all(map(_written_in_python, type(value).__mro__[:-1]))


def _written_in_python(kind: type) -> bool:
    if not kind.__flags__ & HEAP:
        return False
    return not any(
        isinstance(part, COMPILED)
        or type(part).__name__ == "instancemethod"  # of pybind11
        or (isinstance(part, GetSetDescriptorType) and name not in ("__dict__", "__weakref__"))
        for name, part in vars(kind).items()
    )


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
