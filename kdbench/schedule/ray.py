"""The executor ``ray``: the machines of a Ray cluster.

Ray itself is imported only where a suite asks for this executor; see :mod:`kdbench.schedule.raytasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

from kdbench.errors import UsageError, did_you_mean
from kdbench.hookspecs import hookimpl
from kdbench.schedule.executor import Context, Executor

OPTIONS = ("address", "runtime_env", "ship", "workers")


def ray(
    context: Context,
    *,
    address: object = "auto",
    workers: object = None,
    runtime_env: object = None,
    ship: object = True,
    **unknown: object,
) -> Executor:
    """The executor ``ray``.

    ``address`` is ``auto`` (the cluster that this machine belongs to, or ``$RAY_ADDRESS``) or ``HOST:PORT`` of a
    cluster's head. ``workers`` is the number of jobs at once (default: as many as the cluster has cores);
    ``runtime_env`` is what Ray calls so, for what else the machines need; ``ship: false`` uses the kdbench that is
    installed on the machines instead of this one.

    Raises ``UsageError`` for other options and values, where Ray is not installed, where no cluster answers, and
    where a machine of it cannot run the jobs.
    """
    if unknown:
        name = sorted(unknown)[0]
        raise UsageError(f"the executor 'ray' has no option {name!r}", hint=did_you_mean(name, OPTIONS))
    if not isinstance(address, str) or (address != "auto" and not _is_host_and_port(address)):
        expected = "'auto' or HOST:PORT of the cluster's head"
        raise UsageError(f"address of the executor 'ray' is {expected}, not {address!r}", hint=_hint(address))
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UsageError(f"workers of the executor 'ray' is a positive whole number, not {workers!r}")
    if not isinstance(ship, bool):
        raise UsageError(f"ship of the executor 'ray' is true or false, not {ship!r}")
    if runtime_env is not None and not isinstance(runtime_env, Mapping):
        raise UsageError(
            f"runtime_env of the executor 'ray' is a mapping, not {runtime_env!r}",
            hint="its keys are Ray's, such as env_vars, pip and working_dir",
        )
    if find_spec("ray") is None:
        raise UsageError("the executor 'ray' needs the package 'ray'", hint="pip install 'kdbench[ray]'")
    from kdbench.schedule.raytasks import RayExecutor

    return RayExecutor(
        context, address=address, workers=context.workers or workers, runtime_env=dict(runtime_env or {}), ship=ship
    )


def _is_host_and_port(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    return bool(host and colon and "/" not in host) and port.isdecimal() and 0 < int(port) < 65536


def _hint(address: object) -> str:
    if isinstance(address, str) and address.startswith("ray://"):
        return "the coordinator runs on a machine of the cluster: start kdbench there"
    return "ray status on the head prints it"


@hookimpl
def kdbench_executors() -> Mapping[str, Callable[..., Executor]]:
    """The executor of the extra ``ray``; without Ray, asking for it says how to install it."""
    return {"ray": ray}
