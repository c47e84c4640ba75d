"""An outcome as a run of MLflow: its name, tags, parameters and metrics. Nothing of MLflow is imported here.

What all runs can be compared and filtered by stands under ``kdbench.``: method, task, scale and seed as tags and as
parameters (MLflow's charts group by parameters), the status and what went wrong as tags. A method's own parameters
and a task's metrics keep their names; costs are ``cost/...``, learning curves ``curve/...``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kdbench.job import Outcome

LONGEST = 5000
"""Characters of a parameter or a tag; MLflow takes 6000 and 8000."""
LONGEST_NAME = 250
"""Characters of the name of a parameter or a metric."""

JOB, CONTENT, TOKEN, STATUS = "kdbench.job", "kdbench.content", "kdbench.token", "kdbench.status"

FINAL = 0
"""Step of values that are measured once: MLflow draws those as bars, run beside run, and any other as a line."""

_NOT_IN_NAMES = re.compile(r"[^\w\-. /:]")
_STATES = {"ok": "FINISHED", "interrupted": "KILLED"}

Point = tuple[str, float, int]
"""Name, value and step of a metric."""


@dataclass(frozen=True)
class RunData:
    """What one run is made of."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[Point]
    """Finite values only; a tag names the others."""
    state: str
    """FINISHED, KILLED or FAILED."""
    started: int
    """Milliseconds since 1970, as ``ended``."""
    ended: int


def describe(
    outcome: Outcome, curve: Sequence[Mapping[str, float | None]], *, suite: str, content: str, token: str
) -> RunData:
    """The run of an outcome in the experiment of a suite.

    ``content`` is the digest of its file, by which it is known again; ``token`` names this attempt to send it.
    """
    job = outcome.job
    final = {**outcome.metrics, **outcome.extra, **{f"cost/{name}": value for name, value in outcome.cost.items()}}
    if outcome.headline is not None:
        final = {"headline": outcome.headline, **final}
    points = [(name, value, FINAL) for name, value in _named(final).items()]
    points += _points(curve)
    odd = [f"{name}={value}" for name, value, _ in points if not math.isfinite(value)]
    tags = {
        "kdbench.suite": suite,
        "kdbench.track": job.track,
        "kdbench.method": job.method,
        "kdbench.label": job.label or job.method,
        "kdbench.task": job.task,
        "kdbench.scale": job.scale,
        "kdbench.seed": job.seed,
        "kdbench.spec": job.spec_digest,
        "kdbench.headline": _headline(job.spec),
        STATUS: outcome.status,
        "kdbench.error": f"{outcome.error.type}: {outcome.error.message}" if outcome.error else None,
        "kdbench.not_finite": ", ".join(dict.fromkeys(odd)) or None,
        JOB: outcome.id,
        CONTENT: content,
        TOKEN: token,
        "mlflow.source.name": "kdbench",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": (outcome.provenance.get("git") or {}).get("commit"),
        "mlflow.note.content": _note(outcome),
    }
    params = {
        "kdbench.method": job.method,
        "kdbench.task": job.task,
        "kdbench.scale": job.scale,
        "kdbench.seed": job.seed,
        **{f"kdbench.limit.{name}": f"{value:g}" for name, value in (job.spec.get("limits") or {}).items()},
        **job.params,
    }
    return RunData(
        name=_text(f"{job.label or job.method} seed {job.seed}, {job.task}@{job.scale}"),
        tags={name: _text(value) for name, value in tags.items() if value is not None},
        params={name: _text(value) for name, value in _named(params).items()},
        metrics=[point for point in points if math.isfinite(point[1])],
        state=_STATES.get(outcome.status, "FAILED"),
        started=_milliseconds(outcome.started_at),
        ended=_milliseconds(outcome.finished_at),
    )


def _points(curve: Sequence[Mapping[str, float | None]]) -> Iterable[Point]:
    names = _named({f"curve/{name}": name for point in curve for name in point if name != "step"})
    shown = {name: short for short, name in names.items()}
    for point in curve:
        step = int(point["step"] or 0)
        for name, value in point.items():
            if name != "step" and value is not None:
                yield shown[name], value, step


def _headline(spec: Mapping[str, Any]) -> str | None:
    metric = spec.get("headline")
    return None if metric is None else f"{metric['name']} ({metric['direction']})"


def _note(outcome: Outcome) -> str | None:
    """The description that MLflow shows on the run's page: why there is no result."""
    if outcome.error is None:
        return None
    shown = outcome.error.traceback or f"{outcome.error.type}: {outcome.error.message}"
    indented = "\n".join(f"    {line}" for line in shown[-LONGEST // 2 :].splitlines())  # a block of code, as Markdown
    return f"{outcome.status} (`kdbench logs {outcome.id}`)\n\n{indented}"


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values under names that MLflow accepts, no two of which are the same."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        short, number = _name(name), 2
        while short in found:
            short, number = f"{_name(name)[: LONGEST_NAME - 8]}_{number}", number + 1
        found[short] = value
    return found


def _name(name: str) -> str:
    parts = _NOT_IN_NAMES.sub("_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:LONGEST_NAME].rstrip("/") or "_"


def _text(value: Any) -> str:
    """A value as text; cut where it is too long, and without the character that databases refuse."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = text.replace("\0", "\\0")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _milliseconds(moment: datetime) -> int:
    return int(moment.replace(tzinfo=UTC).timestamp() * 1000)
