"""One job, from its description to its outcome, in this process.

The scheduler calls :func:`run_job` in a process per job; tests call it where they are. Whatever a method does, an
exception ends here as a recorded outcome. What kills the process is recorded by the scheduler instead.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import kdbench
from kdbench import provenance as origin
from kdbench.cache import Cache
from kdbench.catalog import spec_class
from kdbench.discovery.digests import method_digest
from kdbench.errors import ContractError, Diverged, JobError
from kdbench.job import Failure, Job, Outcome, Status, utcnow
from kdbench.quantities import show_bytes
from kdbench.registry import Registry, discover, load_method, method_manager, params_class
from kdbench.store import spool
from kdbench.task import Task, count_parameters
from kdbench.training.checkpoint import Checkpoints, Spent, StartOver

log = logging.getLogger(__name__)

Report = Callable[[int, int | None, dict[str, float]], None]

FRAMES = 12
"""Frames of a recorded traceback, the innermost ones."""
IMPORTED = ("Baseline", "Compare", "Field", "Paper", "Params", "hookimpl")
"""What methods import of kdbench."""
LONGEST_MESSAGE = 4000
"""Characters of a recorded message and of a recorded traceback; the log has the whole."""

_OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc", "out of memory")


@lru_cache(maxsize=8)
def registry_of(plugins: tuple[Path, ...]) -> Registry:
    """What is installed, read once per process: workers inherit it from the process that they are forked from."""
    return discover(plugins)


def warm(plugins: tuple[Path, ...], tracks: Sequence[str]) -> None:
    """Do once, before forking, what every job would do first: discovery, and what torch imports on first use.

    No gradient is computed: the threads that it may start would not survive the fork.
    """
    registry = registry_of(plugins)
    registry.for_methods  # noqa: B018 - made here once, for all jobs
    for name in IMPORTED:
        getattr(kdbench, name)
    for name in tracks:
        track = registry.tracks[name]
        spec_class(track)
        resolve_name(track.task)
        origin.module_digests(name)
    with repeatable(), FlopCounterMode(display=False):
        network = nn.Linear(1, 1)
        optimizer = torch.optim.AdamW(network.parameters())
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        nn.functional.cross_entropy(network(torch.zeros(1, 1)), torch.zeros(1, dtype=torch.long))


def make_task(
    job: Job,
    folder: Path,
    device: str = "cpu",
    cache: Cache | None = None,
    report: Report | None = None,
    *,
    registry: Registry | None = None,
) -> Task:
    """The task of a job as its hooks receive it. Raises ``JobError`` where the job's track is not installed."""
    registry = registry if registry is not None else registry_of(())
    track = registry.tracks.get(job.task.split("/", 1)[0])
    if track is None:
        raise JobError(
            f"the track of task {job.task!r} is not installed (tracks: {', '.join(sorted(registry.tracks))})"
        )
    # title and timeout are no part of a task's identity and cannot change results
    spec = spec_class(track).model_validate({**job.spec, "title": job.task, "timeout": job.timeout})
    if cache is None:
        cache = Cache(packs=[track.packs] if track.packs is not None else [])
    task: Task = resolve_name(track.task)(
        spec, seed=job.seed, method=job.method, folder=folder, cache=cache, device=device, report=report
    )
    return task


def prepare(
    job: Job,
    folder: Path,
    *,
    device: str = "cpu",
    plugins: Sequence[Path] = (),
    cache: Cache | None = None,
    registry: Registry | None = None,
) -> None:
    """Put into the cache what all jobs of the job's task share: its teacher. Raises whatever stops that."""
    registry = registry if registry is not None else registry_of(tuple(plugins))
    with repeatable():
        task = make_task(job, folder, device, cache, registry=registry)
        task.seed_globals("prepare")
        task.prepare()


@dataclass
class _Found:
    """What is known about a job so far; what an exception interrupts keeps its part."""

    task: Task | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    gate: list[str] = field(default_factory=list)
    """Why a board of the task would say nothing."""

    @property
    def resumed(self) -> list[dict[str, int]]:
        """Where trainings went on from a checkpoint."""
        return [] if self.task is None or self.task.checkpoints is None else self.task.checkpoints.resumed


def run_job(
    job: Job,
    folder: Path,
    *,
    device: str = "cpu",
    plugins: Sequence[Path] = (),
    cache: Cache | None = None,
    report: Report | None = None,
    registry: Registry | None = None,
    provenance: Mapping[str, Any] | None = None,
    attempt: int = 1,
) -> Outcome:
    """Run a job in this process, write its ``outcome.json`` into ``folder`` last, and return what was written.

    ``folder`` is made where it is missing and should be empty but for a checkpoint, from which the job goes on.
    ``device`` is ``"cpu"`` or ``"cuda"``. ``plugins``
    are files given with ``--plugin``; ``registry`` replaces what is discovered from them. ``provenance`` is what
    the coordinator collected once for all jobs; without it, it is collected here.

    Errors of the job are recorded, never raised; ``KeyboardInterrupt`` and a spool that cannot be written
    (``OSError``) are raised. Global state (threads, determinism, gradients, random generators) is put back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started_at, started = utcnow(), time.perf_counter()
    found = _Found()
    status: Status = "ok"
    error: Failure | None = None
    with repeatable():
        try:
            registry = registry if registry is not None else registry_of(tuple(plugins))
            while True:
                found.task = make_task(job, folder, device, cache, report, registry=registry)
                if job.checkpoint_every is not None:
                    found.task.keep(Checkpoints(folder, every=job.checkpoint_every, job=job, device=device))
                try:
                    _run(job, found.task, registry, found)
                    break
                except StartOver as reason:
                    log.warning("the checkpoint is left out, the job starts anew: %s", reason)
                    spool.empty(folder, keep=(spool.LOG,))
        except KeyboardInterrupt:
            raise
        except BaseException as exception:  # noqa: BLE001 - SystemExit and all else that a method can raise
            status, error = _status(exception), _failure(exception, job)
            if status == "oom":
                _release(exception)
        found.cost |= _cost(found.task)
        with suppress(OSError):  # a curve that cannot be written must not hide the outcome
            if found.task is not None:
                found.task.flush()
    outcome = Outcome(
        id=job.id,
        job=job,
        status=status,
        headline=found.metrics.get(job.spec["headline"]["name"]) if status == "ok" else None,
        metrics=found.metrics if status == "ok" else {},
        extra=found.extra if status == "ok" else {},
        cost=found.cost,
        error=error,
        artifacts=spool.artifacts(folder),
        started_at=started_at,
        finished_at=later(started_at, time.perf_counter() - started),
        attempts=attempt,
        provenance={
            **(origin.of_run() if provenance is None else provenance),
            "device": origin.device_name(device),
            "modules": origin.module_digests(job.track),
            **({"gate": found.gate} if found.gate else {}),
            **({"resumed": found.resumed} if found.resumed else {}),
        },
    )
    spool.write_outcome(folder, outcome)
    if found.task is not None and found.task.checkpoints is not None:
        found.task.checkpoints.discard()
    return outcome


def _run(job: Job, task: Task, registry: Registry, found: _Found) -> None:
    """Train, check, score and save. Raises whatever goes wrong."""
    task.seed_globals("method")
    module = _method_module(job)
    manager = method_manager(module, registry)
    params = params_class(module).model_validate(job.params)

    started, processor = time.perf_counter(), _cpu_seconds()
    try:
        with repeatable():  # what train changes globally does not reach the evaluation
            model = manager.hook.train(task=task, params=params)
    finally:
        before = Spent() if task.checkpoints is None else task.checkpoints.before
        elapsed = before.wall + time.perf_counter() - started
        gpus = max(1, math.ceil(job.resources.gpus))
        on_device = elapsed * gpus if task.device.type == "cuda" else before.processor + _cpu_seconds() - processor
        found.cost |= {"train_seconds": elapsed, "device_seconds": on_device}

    task.check(model)
    _require_finite(model)
    changed = task.changed_teachers()
    if changed:
        raise ContractError(
            f"train changed the shared teacher ({', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}); "
            "use task.teacher(trainable=True) for a private copy"
        )
    networks = _networks(model)
    if networks:
        task.budget.set("parameters", sum(map(count_parameters, networks)))

    task.phase = "evaluate"
    task.seed_globals("eval")
    started = time.perf_counter()
    scores = task.scores(model)
    found.metrics = _official(task, scores.metrics)
    found.extra = _extra(manager.hook.evaluate(task=task, model=model, params=params), found.metrics)
    found.cost["eval_seconds"] = time.perf_counter() - started
    found.gate = task.board_problems()

    if "model" in job.keep:
        task.save(model, task.folder / spool.MODEL)
    headline = scores.examples.get(task.spec.headline.name)
    if headline is not None:
        found.cost["test_examples"] = float(len(headline))
    if scores.examples:
        np.savez(task.folder / spool.EXAMPLES, **scores.examples)  # type: ignore[arg-type]


def _method_module(job: Job) -> ModuleType:
    try:
        content = job.method_file.read_bytes()
    except OSError as error:
        raise JobError(f"the method's file cannot be read: {error}") from error
    if not method_digest(content).startswith(job.method_digest):
        # its results would be stored under the identity of the code that was planned
        compile(content, str(job.method_file), "exec")
        raise JobError(f"{job.method_file} was changed after the plan was made; run the same command again")
    return load_method(job.method_file, job.module)


def _official(task: Task, metrics: Mapping[str, float]) -> dict[str, float]:
    """The official metrics as floats. Raises unless all that the task names are there, alone and finite."""
    wanted = {metric.name for metric in task.spec.all_metrics()}
    if set(metrics) != wanted:
        missing, unknown = sorted(wanted - set(metrics)), sorted(set(metrics) - wanted)
        raise ContractError(f"{task.spec.name} scores without {missing} and with {unknown} beside its official metrics")
    return {name: _finite_metric(name, value) for name, value in metrics.items()}


def _extra(returned: Any, official: Mapping[str, float]) -> dict[str, float]:
    """What ``evaluate`` measured beside the official metrics, which it must return unchanged."""
    if returned is None:  # the method has no evaluate hook
        return {}
    if not isinstance(returned, Mapping):
        raise ContractError(f"evaluate returned a {type(returned).__name__}, but it returns a mapping of metrics")
    lacking = sorted(set(official) - set(returned))
    if lacking:
        raise ContractError(f"evaluate left out the official metrics {lacking}; start from task.score(model)")
    values = {str(name): _finite_metric(str(name), value) for name, value in returned.items()}
    for name, value in official.items():
        if values[name] != value:
            raise ContractError(f"evaluate changed the official metric {name!r} from {value!r} to {values[name]!r}")
    return {name: value for name, value in values.items() if name not in official}


def _finite_metric(name: str, value: Any) -> float:
    try:
        number = float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError) as error:
        raise ContractError(f"the metric {name!r} is not a number but a {type(value).__name__}") from error
    if not math.isfinite(number):
        raise Diverged(f"the metric {name!r} is {number}")
    return number


@torch.no_grad()
def _require_finite(model: Any) -> None:
    """Raise ``Diverged`` where a weight of a network is NaN or infinite."""
    for network in _networks(model):
        # what a network is made of may say "never" with an infinite logarithm; what was trained may not
        own = dict(network.named_buffers()) if network is model else {}
        tensors = {**dict(network.named_parameters()), **own}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise Diverged(f"values in {name} of the trained {type(network).__name__} are NaN or infinite")


def _networks(model: Any) -> list[nn.Module]:
    """What was trained: the model itself, or the networks that it says it has (``networks()`` gives them by name)."""
    if isinstance(model, nn.Module):
        return [model]
    named = model.networks() if hasattr(model, "networks") else {}
    return list({id(network): network for network in named.values()}.values())


def _cpu_seconds() -> float:
    """Processor seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


def _cost(task: Task | None) -> dict[str, float]:
    unit = 1 if sys.platform == "darwin" else 1024
    cost = {"peak_rss_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    if task is not None:
        cost |= task.budget.report()
        if task.device.type == "cuda":
            cost["peak_gpu_bytes"] = float(torch.cuda.max_memory_allocated())
    return cost


def later(moment: datetime, seconds: float) -> datetime:
    """``seconds`` after a moment: durations come from a clock that cannot jump."""
    return moment + timedelta(seconds=seconds)


# --- failures -----------------------------------------------------------------------------------------------------


def _status(error: BaseException) -> Status:
    if isinstance(error, JobError):
        return error.status  # type: ignore[return-value]
    return "oom" if _is_out_of_memory(error) else "failed"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _failure(error: BaseException, job: Job) -> Failure:
    if isinstance(error, SystemExit):
        message = f"the method called sys.exit({error.code!r})"
    elif isinstance(error, MemoryError) and not str(error):
        limit = job.resources.memory
        message = "no memory was left" + (f" of the {show_bytes(limit)} that the suite allows a job" if limit else "")
    else:
        message = str(error) or f"{type(error).__name__} without a message"
    return Failure(
        type=type(error).__name__,
        message=message[:LONGEST_MESSAGE],
        traceback=_traceback(error, job.method_file)[-LONGEST_MESSAGE:],
    )


def _traceback(error: BaseException, method_file: Path) -> str:
    """The frames from the method's own code on, or the innermost ones where the error is not below it."""
    report = traceback.TracebackException.from_exception(error)
    chain: traceback.TracebackException | None = report
    while chain is not None:
        first = next((i for i, frame in enumerate(chain.stack) if frame.filename == str(method_file)), 0)
        chain.stack = traceback.StackSummary.from_list(chain.stack[first:][-FRAMES:])
        chain = chain.__cause__ or chain.__context__
    return "".join(report.format())


def _release(error: BaseException) -> None:
    """Let go of what the failed frames hold, and lift the soft limit of memory, so that the outcome can be written."""
    links: list[TracebackType | None] = []
    chain: BaseException | None = error
    while chain is not None and len(links) < 32:
        links.append(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
    for link in links:
        traceback.clear_frames(link)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


@contextmanager
def repeatable() -> Iterator[None]:
    """One thread and deterministic algorithms inside; everything global is as before afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_grad_enabled(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
