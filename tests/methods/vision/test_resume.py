"""Methods whose variants change things from step to step go on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import pytest

from kdbench.conformance.interrupting import curve, run_in_two
from kdbench.job import Job
from kdbench.registry import discover
from kdbench.schedule.verify import meters
from kdbench.worker import run_job

CASES = {
    "mcmi": ({"finetune_steps": 6, "centroid_update": "ema", "centroid_samples": 2}, 4),
    "kd_aif": ({"update": "periodic", "period": 2, "solver": "kfac"}, 3),
    "data_pruning_kd": ({"score": "forgetting", "runs": 2, "score_steps": 4}, 6),
}
"""Parameters, and the number of checkpoints after which the job is interrupted."""


@pytest.mark.parametrize("slug", CASES)
def test_what_was_interrupted_ends_as_if_it_had_not_been(tmp_path, slug):
    registry, (params, after) = discover(), CASES[slug]
    method, spec = registry.method(slug, "vision"), registry.task("vision/digits-gap", "smoke")
    job = Job(
        method=method.key,
        method_digest=method.digest,
        params=method.canonical(params),
        task=spec.name,
        spec=spec.identity(),
        seed=0,
        track_version=registry.tracks["vision"].version,
        method_file=method.path,
        module=method.module,
        checkpoint_every=None,
    )
    whole = run_job(job, tmp_path / "whole")
    assert whole.status == "ok", whole.error
    again, stopped = run_in_two(job.model_copy(update={"checkpoint_every": 600}), tmp_path / "again", after)
    assert stopped == after
    assert (again.metrics, again.extra, meters(again)) == (whole.metrics, whole.extra, meters(whole))
    assert curve(tmp_path / "again") == curve(tmp_path / "whole")
    assert again.provenance["resumed"]
