"""Methods of the toy track whose cards make claims, and outcomes of them, without training anything."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.job import Outcome
from kdbench.registry import Registry
from tests.helpers.outcomes import make_job, make_outcome
from tests.toytrack import PLAIN

CARD = """
from kdbench import Compare, Field, Paper, Params, hookimpl

PAPER = Paper(
    slug="{slug}", title="The method {slug}", year=2025, track="toy", source="paper", tasks=[{tasks}],
    claims=[{claims}], departures=["fewer steps"],
)


class Knobs(Params):
    weight: float = Field(4.0, ge=0, description="of the divergence")
    mode: str = Field("soft", description="of the targets")

"""


def write_paper(folder: Path, slug: str, *claims: str, tasks: Sequence[str] = ("*",), body: str = PLAIN) -> Path:
    """A file with a method ``toy/<slug>`` whose card makes these claims, each the source of a ``Compare``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug}.py"
    names = ", ".join(repr(task) for task in tasks)
    path.write_text(CARD.format(slug=slug, tasks=names, claims=", ".join(claims)) + textwrap.dedent(body))
    return path


def compare(
    subject: object, reference: object, metric: str = "mse", tasks: Sequence[str] = ("line",), **more: Any
) -> str:
    """The source of a claim."""
    values = {"metric": metric, "subject": subject, "reference": reference, "tasks": list(tasks), **more}
    return f"Compare({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def ran(
    registry: Registry,
    slug: str,
    scores: Sequence[float | str | None],
    *,
    task: str = "toy/line",
    scale: str = "cpu",
    params: Mapping[str, Any] | None = None,
    limits: Mapping[str, float] | None = None,
    digest: str | None = None,
    protocol: int | None = None,
    **changes: Any,
) -> list[Outcome]:
    """Outcomes of an installed method for seeds 0, 1, ...: scores, what the job failed with, or None for no job."""
    method = registry.methods[f"toy/{slug}"]
    spec = registry.task(task, scale, limits=limits).identity()
    more = {} if protocol is None else {"protocol": protocol}
    found = []
    for seed, score in enumerate(scores):
        if score is None:
            continue
        params_ = method.canonical(params or {})
        job = make_job(slug, seed, task=task, spec=spec, params=params_, digest=digest or method.digest, **more)
        failed = isinstance(score, str)
        found.append(make_outcome(job, None if failed else score, status=score if failed else "ok", **changes))
    return found
