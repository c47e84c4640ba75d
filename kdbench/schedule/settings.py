"""Global settings of a process that a job may change, and that are put back after it."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

LIMITS = ("RLIMIT_DATA", "RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_STACK", "RLIMIT_CORE")
TIMERS = ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")


@dataclass
class Setting:
    """Something global, with its value when this was made."""

    name: str
    read: Callable[[], Any]
    """Its value; equal values mean that nothing changed, so what is mutable is copied."""
    write: Callable[[Any], Any]
    before: Any = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.read()


def put_back(settings: Sequence[Setting]) -> list[str]:
    """Give each its value again; returns what was refused, one sentence each."""
    problems = []
    for setting in settings:
        try:
            if setting.read() != setting.before:
                setting.write(setting.before)
        except (OSError, RuntimeError, ValueError) as error:
            problems.append(f"{setting.name} cannot be put back: {error}")
    return problems


def of_process() -> list[Setting]:
    """Settings of Python and of the operating system."""
    signals = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
    named = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(logger for logger in named if isinstance(logger, logging.Logger))]
    found = [
        *(_timer(name) for name in TIMERS),  # before the handlers of their signals
        Setting("the environment", lambda: dict(os.environ), _set_environment),
        Setting("the working directory", os.getcwd, os.chdir),
        Setting("the mask of new files", _mask, os.umask),
        Setting("the import path", lambda: list(sys.path), partial(sys.path.__setitem__, slice(None))),
        Setting("the arguments", lambda: list(sys.argv), partial(sys.argv.__setitem__, slice(None))),
        Setting("the filters of warnings", lambda: list(warnings.filters), _set_warnings),
        Setting("the depth of recursion", sys.getrecursionlimit, sys.setrecursionlimit),
        Setting("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        Setting("the pace of garbage collection", gc.get_threshold, lambda values: gc.set_threshold(*values)),
        Setting("tracing", sys.gettrace, sys.settrace),
        Setting("profiling", sys.getprofile, sys.setprofile),
        Setting("the loggers", partial(_states, loggers), _set_loggers),
        Setting("the level of logging", lambda: logging.root.manager.disable, logging.disable),
        Setting("the handling of signals", lambda: [signal.getsignal(n) for n in signals], partial(_handle, signals)),
        *(_attribute(sys, name) for name in ("excepthook", "unraisablehook", "displayhook")),
        _attribute(threading, "excepthook"),
        *(_attribute(warnings, name) for name in ("showwarning", "formatwarning")),
    ]
    for name in LIMITS:
        which = getattr(resource, name)
        found.append(
            Setting(f"the limit {name}", partial(resource.getrlimit, which), partial(resource.setrlimit, which))
        )
    if hasattr(os, "sched_setaffinity"):
        found.append(Setting("the cores", partial(os.sched_getaffinity, 0), partial(os.sched_setaffinity, 0)))
    return found


def of_libraries() -> list[Setting]:
    """Settings of numpy and torch that change results or logs, beside those that every job sets itself."""
    import numpy as np
    import torch
    from torch import _tensor_str

    found = [
        Setting("numpy's errors", np.geterr, lambda values: np.seterr(**values)),
        Setting("numpy's printing", np.get_printoptions, lambda values: np.set_printoptions(**values)),
        Setting("torch's printing", lambda: dict(vars(_tensor_str.PRINT_OPTS)), vars(_tensor_str.PRINT_OPTS).update),
        Setting("torch's default device", torch.get_default_device, torch.set_default_device),
        Setting("torch's matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        Setting("torch's anomaly mode", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    ]
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    found += [
        Setting(f"the {kind} attention", getattr(cuda, f"{kind}_sdp_enabled"), getattr(cuda, f"enable_{kind}_sdp"))
        for kind in ("flash", "mem_efficient", "math", "cudnn")
    ]
    found += [_attribute(cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")]
    found += [
        _attribute(cuda.matmul, name)
        for name in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    ]
    modules = vars(torch.nn.modules.module)
    for name in [name for name, value in modules.items() if name.startswith("_global_") and isinstance(value, dict)]:
        hooks = modules[name]
        found.append(Setting(f"the hooks of all modules ({name})", partial(dict, hooks), partial(_refill, hooks)))
    return found


def _attribute(owner: Any, name: str) -> Setting:
    of = getattr(owner, "__name__", type(owner).__name__)
    return Setting(f"{of}.{name}", partial(getattr, owner, name), partial(setattr, owner, name))


def _refill(table: dict[Any, Any], values: dict[Any, Any]) -> None:
    table.clear()
    table.update(values)


def _set_environment(values: dict[str, str]) -> None:
    for name in set(os.environ) - set(values):
        del os.environ[name]
    os.environ.update(values)


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_warnings(filters: list[Any]) -> None:
    warnings.resetwarnings()  # also makes every module forget which warnings it has given
    cast(list[Any], warnings.filters).extend(filters)


def _handle(signals: Sequence[int], handlers: Sequence[Any]) -> None:
    for number, handler in zip(signals, handlers, strict=True):
        if handler is not None and signal.getsignal(number) != handler:  # None: not set from Python
            signal.signal(number, handler)


def _timer(name: str) -> Setting:
    which = getattr(signal, name)
    return Setting(f"the timer {name}", partial(signal.getitimer, which), lambda _: signal.setitimer(which, 0))


LoggerState = tuple[logging.Logger, int, bool, bool, list[Any], list[Any]]


def _states(known: Sequence[logging.Logger]) -> list[LoggerState]:
    return [
        (logger, logger.level, logger.disabled, logger.propagate, list(logger.handlers), list(logger.filters))
        for logger in known
    ]


def _set_loggers(states: list[LoggerState]) -> None:
    """Loggers that came since are left alone: libraries set theirs up once, when they are imported."""
    for logger, level, disabled, propagate, handlers, filters in states:
        logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate
        logger.handlers[:], logger.filters[:] = handlers, filters
