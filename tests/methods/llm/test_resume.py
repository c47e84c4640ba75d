"""Methods that train on what they sample go on from a checkpoint, in trainings of several epochs."""

from __future__ import annotations

import zlib

import pytest

from kdbench.conformance.interrupting import curve, meters, run_in_two
from kdbench.job import Job
from kdbench.worker import run_job

CASES = {
    "gkd": {"seq_kd": True},
    "imitkd": {},
    "minillm": {"lm_ratio": 0.5},
    "distillm": {"threshold": 0.6, "capacity": 40, "validations": 4, "tolerance": 0.0},
    "adakd on replay": {"data": "distillm", "focus": "random"},
    "adakd on a mixture": {"data": "gkd", "eps": 0.0, "warmup": 0.0},
    "taid": {"alpha": 0.5},
    "ctkd": {},
    "leaf": {"verify": "none"},
    "multi_granularity_revision": {"pool": 8, "refresh": 3, "choice": "sample"},
}
STEPS = {"limits": {"steps": 20}, "recipe": {"batch_size": 16}}


@pytest.mark.parametrize("case", CASES)
def test_what_was_interrupted_ends_as_if_it_had_not_been(registry, tmp_path, case):
    method = registry.method(f"llm/{case.split()[0]}")
    params = {"steps_fraction": 1.0, "max_new": 4, **CASES[case]}
    known = method.canonical({})
    spec = registry.task("llm/instruct", "smoke", STEPS)
    job = Job(
        method=method.key,
        method_digest=method.digest,
        params=method.canonical({name: value for name, value in params.items() if name in known}),
        task=spec.name,
        spec=spec.identity(),
        seed=0,
        track_version=registry.tracks["llm"].version,
        method_file=method.path,
        module=method.module,
        checkpoint_every=None,
    )
    whole = run_job(job, tmp_path / "whole")
    assert whole.status == "ok", whole.error
    after = 2 + zlib.crc32(case.encode()) % 14
    again, stopped = run_in_two(job.model_copy(update={"checkpoint_every": 600}), tmp_path / "again", after)
    assert stopped == after
    assert (again.metrics, again.extra, meters(again)) == (whole.metrics, whole.extra, meters(whole))
    assert curve(tmp_path / "again") == curve(tmp_path / "whole")
    assert again.provenance["resumed"][0]["step"] < 20
