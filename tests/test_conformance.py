"""Every method keeps the contract: it runs on the smallest task it belongs to, within budget, reproducibly.

The second run of each is interrupted somewhere and goes on from its checkpoint.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kdbench.job import Job, Outcome
from kdbench.registry import Method, Registry, discover
from kdbench.spec import TaskSpec
from kdbench.worker import run_job
from tests.helpers.interrupting import curve, meters, run_in_two

WITHOUT_CHECKPOINTS = {
    "llm/student_init": "trains nothing",
    "llm/teacher": "trains nothing",
    "vision/teacher": "trains nothing",
}
"""Methods that start from the top when they were interrupted, and why."""


@cache
def registry() -> Registry:
    return discover()


def smallest_task(method: Method) -> TaskSpec:
    """The first task of the method's track that lists it and has a smoke scale."""
    for entry in registry().tasks():
        if entry.track == method.track and "smoke" in entry.scales:
            spec = registry().task(entry.name, "smoke")
            if registry().supports(method, spec) and not spec.problems():
                return spec
    raise AssertionError(f"{method.key} belongs to no task with a smoke scale")


def job_of(method: Method, spec: TaskSpec, seed: int) -> Job:
    return Job(
        method=method.key,
        method_digest=method.digest,
        params=method.canonical({}),
        task=spec.name,
        spec=spec.identity(),
        seed=seed,
        track_version=registry().tracks[method.track].version,
        method_file=method.path,
        module=method.module,
        keep=("model",),
    )


def run(method: Method, spec: TaskSpec, folder: Path, seed: int = 0) -> Outcome:
    folder.mkdir()
    outcome = run_job(job_of(method, spec, seed), folder)
    assert outcome.status == "ok", f"{outcome.error}"
    return outcome


def test_every_plugin_file_of_the_repository_is_a_method():
    assert registry().broken == []
    files = {path for path in Path("plugins/kdbench_methods").rglob("*.py") if path.name != "__init__.py"}
    assert {method.path.resolve() for method in registry().methods.values()} >= {path.resolve() for path in files}


@pytest.mark.parametrize("key", sorted(registry().methods))
def test_method(key: str, tmp_path: Path):
    method = registry().methods[key]
    assert method.path.stem == method.slug, "the file is named after the slug"
    spec = smallest_task(method)
    outcome = run(method, spec, tmp_path / "first")

    official = {metric.name for metric in spec.all_metrics()}
    assert set(outcome.metrics) == official
    assert outcome.headline == outcome.metrics[spec.headline.name]
    low, high = spec.headline.bounds
    assert low is None or outcome.headline >= low
    assert high is None or outcome.headline <= high
    assert all(np.isfinite(value) for value in {**outcome.metrics, **outcome.extra}.values())

    for unit, limit in spec.limits.items():
        assert outcome.cost.get(unit, 0) <= limit
    if outcome.cost.get("steps"):
        assert outcome.cost["flops"] > 0
        assert outcome.cost["samples"] > 0
        assert (tmp_path / "first" / "curve.jsonl").read_text().count("\n") >= 1

    stored = json.loads((tmp_path / "first" / "outcome.json").read_text())
    assert Outcome.model_validate(stored) == outcome
    assert (tmp_path / "first" / "model").is_dir()

    total = int(outcome.cost.get("steps", 0) + outcome.cost.get("aux_steps", 0))
    somewhere = 1 + zlib.crc32(key.encode()) % max(1, total - 1)
    again, stopped_after = run_in_two(job_of(method, spec, 0), tmp_path / "again", somewhere)
    assert again.status == "ok", f"{again.error}"
    assert again.metrics == outcome.metrics, "the same seed gives the same metrics, and so does going on"
    assert again.extra == outcome.extra
    assert meters(again) == meters(outcome)
    assert curve(tmp_path / "again") == curve(tmp_path / "first")
    assert again.artifacts == outcome.artifacts
    if key not in WITHOUT_CHECKPOINTS:
        assert stopped_after, "it writes no checkpoint: declare its state, or say in WITHOUT_CHECKPOINTS why not"
        assert again.provenance["resumed"], "it went on from its checkpoint"
    else:
        assert not stopped_after
