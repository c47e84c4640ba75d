"""``Task``: what the hooks of a method receive.

One object gives a method its student, teacher, data, training loop, budget and randomness. Tracks subclass it and
add typed members of their own; a method sees nothing of the scheduler, the stores or other jobs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.budget import Budget
from kdbench.cache import Cache
from kdbench.errors import ArtifactError, TestDataError
from kdbench.spec import TaskSpec
from kdbench.store.spool import CURVE
from kdbench.training import loop

if TYPE_CHECKING:
    from kdbench.track import Track
    from kdbench.training.checkpoint import Checkpoints
    from kdbench.training.loop import FitResult, Loss
    from kdbench.training.state import Stateful

log = logging.getLogger(__name__)

SHARED_PURPOSES = frozenset({"init", "data", "eval"})
"""Purposes whose random streams are the same for every method, so that methods are compared in pairs."""

Phase = Literal["train", "evaluate"]


@dataclass
class Scores:
    """Official result of one model on the test data."""

    metrics: dict[str, float]
    """Every metric that the task's specification names."""
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    """Per-example values by metric name, each (N,), for paired tests over examples."""


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the parts: the same parts give the same seed on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Rng(np.random.Generator):
    """The generator of numpy, as a class that weak references can point to."""


class Task(ABC):
    """One standardized problem, as one job sees it."""

    home: ClassVar[Track | None] = None
    """The track of a class. What it ships, and what the tracks of its base classes do, is in the default cache."""
    checkpoints: Checkpoints | None = None
    """Where :meth:`fit` saves how far it is, for a job that is interrupted."""
    _parts: frozenset[str] = frozenset()

    def keep(self, checkpoints: Checkpoints) -> None:
        """Let :meth:`fit` save how far it is; called once, before anybody else has the task."""
        self.checkpoints = checkpoints
        self._parts = frozenset(vars(self))

    def __init__(
        self,
        spec: TaskSpec,
        *,
        seed: int,
        method: str,
        folder: Path,
        cache: Cache | None = None,
        device: str | torch.device = "cpu",
        report: Callable[[int, int | None, dict[str, float]], None] | None = None,
    ) -> None:
        """``report(step, total_steps, values)`` is called at most twice a second with the latest logged values."""
        self.spec = spec
        self.seed = seed
        self.method = method
        self.folder = folder
        self.cache = cache if cache is not None else Cache(packs=self._packs())
        self.device = torch.device(device)
        self.budget = Budget(spec.limits)
        self.phase: Phase = "train"
        self._report = report
        self._reported = 0.0
        self._curve: list[dict[str, float]] = []
        self.rows = 0
        """Points that were added to the curve."""
        self._muted = False
        self._issues: Counter[str] = Counter()
        self._issued: WeakValueDictionary[str, torch.Generator | Rng] = WeakValueDictionary()
        self._teacher: nn.Module | None = None
        self._shared: list[tuple[nn.Module, dict[str, tuple[int, int, bool]]]] = []
        self._scores: dict[int, tuple[Any, Scores]] = {}

    # --- randomness -----------------------------------------------------------------------------------------------

    @classmethod
    def _packs(cls) -> tuple[Path, ...]:
        homes = [found for one in cls.__mro__ if (found := vars(one).get("home")) is not None]
        return tuple(home.packs for home in homes if home.packs is not None)

    def stream(self, purpose: str) -> int:
        """Seed of a random stream. ``init``, ``data`` and ``eval`` are shared by all methods of the task."""
        if purpose in SHARED_PURPOSES:
            return seed_of(self.spec.name, self.seed, purpose)
        return seed_of(self.spec.name, self.seed, self.method, purpose)

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh CPU generator at the start of the stream ``purpose``."""
        made = torch.Generator().manual_seed(self.stream(purpose))
        self._issued[self._issue(f"torch/{purpose}")] = made
        return made

    def rng(self, purpose: str) -> np.random.Generator:
        """As :meth:`generator`, for numpy."""
        made = Rng(np.random.PCG64(self.stream(purpose)))
        self._issued[self._issue(f"numpy/{purpose}")] = made
        return made

    def _issue(self, name: str) -> str:
        """What a generator is known by: its purpose, and how many there were of it before."""
        self._issues[name] += 1
        return f"{name}/{self._issues[name]}"

    @contextmanager
    def seeded(self, purpose: str) -> Iterator[None]:
        """Run a block with the global generators of torch, numpy and Python at the start of the stream ``purpose``."""
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self.seed_globals(purpose)
            try:
                yield
            finally:
                random.setstate(python_state)
                np.random.set_state(numpy_state)  # noqa: NPY002

    def seed_globals(self, purpose: str) -> None:
        """Set the global generators to the start of the stream ``purpose``."""
        seed = self.stream(purpose)
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # manual_seed also formats a stack trace for each absent device
        else:
            torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)

    # --- models ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def build_student(self) -> nn.Module:
        """A new student of the task's architecture, on the CPU, initialised from the global generators."""

    @abstractmethod
    def load_teacher(self) -> nn.Module:
        """The trained teacher, on the CPU: from the cache, or trained or loaded now."""

    @abstractmethod
    def build_teacher(self) -> nn.Module:
        """A network of the teacher's architecture, untrained."""

    def prepare(self) -> None:
        """Make what all jobs of the task share, so that it is in the cache before they start."""
        if self.spec.teacher_key() is not None:
            self.load_teacher()

    def student(self) -> Any:
        """A new student on the task's device: for one seed, every method starts from these weights."""
        with self.seeded("init"):
            model = self.build_student()
        return self.place(model)

    def place(self, model: Any) -> Any:
        """Move a network to the task's device; tracks that spread networks over several devices leave those alone."""
        return model.to(self.device)

    def teacher(self, *, trainable: bool = False) -> Any:
        """The task's teacher: frozen, in eval mode and shared; or a private trainable copy.

        Samples that go through the shared teacher are metered as ``teacher_queries``.
        """
        if trainable:
            copy = deepcopy(self._teacher) if self._teacher is not None else self.place(self.load_teacher())
            copy._forward_pre_hooks.clear()
            copy._forward_pre_hooks_with_kwargs.clear()
            return copy.requires_grad_(True).train()
        if self._teacher is None:
            self._teacher = self.share(self.load_teacher())
        return self._teacher

    def share(self, network: Any) -> Any:
        """Freeze a teacher on the task's device, meter the samples it sees and watch that it stays as it is."""
        network = self.place(network).requires_grad_(False).eval()
        network.register_forward_pre_hook(self._count_query, with_kwargs=True)
        self._shared.append((network, _versions(network)))
        return network

    def changed_teachers(self) -> list[str]:
        """Tensors of shared teachers that were changed in place, replaced, unfrozen or given a gradient."""
        return [
            name
            for network, before in self._shared
            for name, now in {**dict.fromkeys(before), **_versions(network)}.items()
            if before.get(name) != now
        ]

    def teacher_init(self) -> Any:
        """An untrained network of the teacher's architecture, on the task's device."""
        with self.seeded("init"):
            model = self.build_teacher()
        return model.to(self.device)

    def _count_query(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.phase != "train":  # what evaluation asks for is no cost of the method
            return
        inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        self.budget.spend("teacher_queries", 1 if inputs is None else inputs.shape[0])

    # --- data and training ----------------------------------------------------------------------------------------

    @abstractmethod
    def train_loader(self) -> Iterable[Any]:
        """Batches of the training data; each iteration is one epoch. The order comes from the stream ``data``."""

    def fit(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        loader: Iterable[Any] | None = None,
        steps: int | None = None,
        spend: str = "steps",
        modules: Iterable[nn.Module] = (),
        ema: float | None = None,
        on_step: Callable[[int], None] | None = None,
        state: Iterable[Stateful] = (),
        tag: str = "",
        **recipe: Any,
    ) -> FitResult:
        """Train ``model`` in place by minimising ``loss``; the one loop that all loss-style methods use.

        ``loss(model, batch)`` returns a scalar tensor, or a mapping of named scalar tensors whose sum is minimised
        and which are logged by name. ``loader`` (default: :meth:`train_loader`) is iterated again when it ends.
        ``steps`` defaults to what is left of the task's limit. ``spend`` names the unit that a step is charged to:
        ``"steps"`` for the network that will be returned, ``"aux_steps"`` (a meter) for auxiliary networks and
        earlier generations. ``modules`` are further networks to train along (projectors, heads), dropped later.
        ``ema`` is the decay of an exponential moving average of the weights, returned in the result.
        ``on_step(step)`` runs after each optimizer step. ``tag`` prefixes the names in the curve.
        Any field of :class:`kdbench.spec.Recipe` may be given by name and wins over the task's.

        A job that is interrupted goes on from its last checkpoint with the same result. For this, what the loss or
        ``on_step`` change from step to step is declared: ``state`` takes objects with ``state_dict()`` and
        ``load_state_dict()``, such as modules and :class:`kdbench.training.state.Values`. Where something else that
        they hold changes, no checkpoint is written, the log says what it is, and an interrupted job starts anew.

        Raises ``OverBudget`` before the first step if the limit does not suffice, ``Diverged`` as soon as the loss
        is not finite.
        """
        return loop.fit(
            self,
            model,
            loss,
            loader=self.train_loader() if loader is None else loader,
            recipe=self.spec.recipe.model_copy(update=recipe) if not recipe else self._recipe(recipe),
            steps=steps,
            spend=spend,
            modules=tuple(modules),
            ema=ema,
            on_step=on_step,
            state=tuple(state),
            tag=tag,
        )

    def steps(
        self, loader: Iterable[Any] | None = None, *, steps: int | None = None, spend: str = "steps"
    ) -> Iterator[tuple[int, Any]]:
        """Steps, counted from 1, with their batches: for a method that writes its own loop.

        ``for step, batch in task.steps(): ...`` charges and meters what :meth:`fit` does: steps, samples, and FLOPs as
        those of the second step for each sample. The rest is the method's: optimizer, schedule, clipping, ``log``. A
        job that is interrupted in such a loop starts anew; :meth:`fit` goes on from its checkpoint.

        ``loader``, ``steps`` and ``spend`` are as in :meth:`fit`. Raises ``OverBudget`` before the first step if the
        limit does not suffice.
        """
        batches = self.train_loader() if loader is None else loader
        yield from loop.own_steps(self, batches, steps, spend)

    def _recipe(self, changes: Mapping[str, Any]) -> Any:
        recipe = self.spec.recipe
        return type(recipe).model_validate({**recipe.model_dump(), **changes})

    # --- evaluation -----------------------------------------------------------------------------------------------

    @abstractmethod
    def validate(self, model: Any) -> dict[str, float]:
        """Metrics on the validation data: all that training may look at."""

    @abstractmethod
    def score_test(self, model: Any) -> Scores:
        """Official metrics on the test data; called by :meth:`score` only."""

    def score(self, model: Any) -> dict[str, float]:
        """Official metrics on the test data; computed once per model. Raises ``TestDataError`` inside ``train``."""
        return dict(self.scores(model).metrics)

    def scores(self, model: Any) -> Scores:
        """As :meth:`score`, with the per-example values."""
        self.require_evaluation()
        known = self._scores.get(id(model))
        if known is None or known[0] is not model:
            known = (model, self.score_test(model))
            self._scores[id(model)] = known
        return known[1]

    def board_problems(self) -> list[str]:
        """Why results of this task must not be ranked, one sentence each; empty where they may be.

        Asked once per job, after scoring: cheap, from what :meth:`prepare` left in the cache.
        """
        return []

    def require_evaluation(self) -> None:
        """Guard of every access to test data. Raises ``TestDataError`` inside ``train``."""
        if self.phase != "evaluate":
            raise TestDataError("test data is out of reach in train; use task.validate(model) instead")

    # --- artifacts ------------------------------------------------------------------------------------------------

    @abstractmethod
    def check(self, model: Any) -> None:
        """Raise ``ArtifactError`` unless ``model`` is something this track evaluates."""

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Write what ``train`` returned, so that :meth:`load` and other programs can read it."""

    @abstractmethod
    def load(self, folder: Path) -> Any:
        """Read what :meth:`save` wrote."""

    def require(self, model: Any, kind: type | tuple[type, ...]) -> None:
        """Raise ``ArtifactError`` with a helpful message unless ``model`` is of ``kind``."""
        if not isinstance(model, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(k.__name__ for k in kinds)
            got = "None" if model is None else f"a {type(model).__name__}"
            hint = "; does train end with `return student`?" if model is None else ""
            raise ArtifactError(f"train returned {got}, but the track {self.spec.track!r} evaluates {wanted}{hint}")

    def artifact(self, name: str) -> Path:
        """Path of a file in the job's folder, for results that the report shows; the folder exists."""
        path = self.folder / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # --- curve ----------------------------------------------------------------------------------------------------

    def log(self, step: int, **metrics: float | Tensor) -> None:
        """Add values to the job's curve at ``step``. Tensors are converted; not for every step of a long loop."""
        if self._muted:
            return
        row = {name: float(value) for name, value in metrics.items()}
        self._curve.append({"step": step, **row})
        self.rows += 1
        self.progress(step, None, row)

    def progress(self, step: int, total: int | None, values: dict[str, float]) -> None:
        """Tell whoever watches how far the job is; drops calls that come within half a second."""
        now = time.monotonic()
        if self._report is not None and now - self._reported >= 0.5:
            self._reported = now
            self._report(step, total, values)
            self.flush()

    def flush(self) -> None:
        """Append what was logged to ``curve.jsonl``; infinite and undefined values are written as null."""
        if not self._curve:
            return
        with (self.folder / CURVE).open("a") as file:
            for row in self._curve:
                clean = {name: value if np.isfinite(value) else None for name, value in row.items()}
                file.write(json.dumps(clean) + "\n")
        self._curve.clear()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What of the task changes while a job trains, of plain values and tensors; tracks add theirs."""
        generators = {
            name: made.get_state() if isinstance(made, torch.Generator) else made.bit_generator.state
            for name, made in self._issued.items()
        }
        return {"budget": dict(self.budget.spent), "generators": generators}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave. Raises ``KeyError`` where a generator is not there any more."""
        for name, value in state["generators"].items():
            made = self._issued[name]
            if isinstance(made, torch.Generator):
                made.set_state(value)
            else:
                made.bit_generator.state = value
        self.budget.restore(state["budget"])

    def own_parts(self) -> list[Any]:
        """What belongs to the task and is no state of a method: itself, its parts, shared teachers, generators."""
        shared = [network for network, _ in self._shared]
        return [self, self.spec, self.budget, self.cache, *shared, *self._issued.values()]

    def foreign_parts(self) -> dict[str, Any]:
        """What a method has put on the task, where it does not belong."""
        return {
            f"task.{name}": value
            for name, value in vars(self).items()
            if name not in self._parts and not hasattr(type(self), name)
        }

    @contextmanager
    def muted(self) -> Iterator[None]:
        """While steps are made again that were made before, nothing is logged."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    def curve_since(self, rows: int) -> list[str]:
        """The lines of the curve after the first ``rows``."""
        self.flush()
        path = self.folder / CURVE
        return path.read_text().splitlines()[rows:] if path.exists() else []

    def restore_curve(self, rows: int, lines: Sequence[str]) -> None:
        """Let the curve have ``lines``, as :meth:`curve_since` gave them, after its first ``rows``."""
        self.flush()
        path = self.folder / CURVE
        before = path.read_text().splitlines()[:rows] if path.exists() else []
        path.write_text("".join(f"{line}\n" for line in (*before, *lines)))
        self.rows = rows + len(lines)


def _versions(network: nn.Module) -> dict[str, tuple[int, int, bool]]:
    """What tells that a tensor of a network is still the same: its storage, its count of changes, its gradient."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: (t.data_ptr(), t._version, t.requires_grad or t.grad is not None) for name, t in tensors.items()}


def count_parameters(model: nn.Module) -> int:
    """Number of distinct parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
