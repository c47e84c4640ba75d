"""Methods that train on what they sample go on from a checkpoint, in trainings of several epochs."""

from __future__ import annotations

import zlib

import pytest

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
def test_what_was_interrupted_ends_as_if_it_had_not_been(registry, interrupted, case):
    slug = case.split()[0]
    known = registry.method(f"llm/{slug}").canonical({})
    params = {"steps_fraction": 1.0, "max_new": 4, **CASES[case]}
    after = 2 + zlib.crc32(case.encode()) % 14
    _, again = interrupted(
        slug, "instruct", after, STEPS, **{name: value for name, value in params.items() if name in known}
    )
    assert again.provenance["resumed"][0]["step"] < 20
