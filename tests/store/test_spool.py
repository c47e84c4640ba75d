"""The spool: whole or nothing, damage is named and skipped, ids cannot leave the folder."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path

import pytest

from kdbench.errors import Problem, UsageError
from kdbench.store import spool
from tests.helpers.outcomes import grid, make_job, make_outcome, put


def test_outcome_survives_the_round_trip(tmp_path: Path) -> None:
    outcome = make_outcome(make_job(params={"alpha": 0.25}), 0.75, extra={"ece": math.nan, "gap": math.inf})
    put(tmp_path, outcome)
    folder = spool.job_folder(tmp_path, outcome.id)
    json.loads((folder / "outcome.json").read_text(), parse_constant=pytest.fail)
    back = spool.read_outcome(folder)
    assert back is not None
    assert math.isnan(back.extra["ece"])
    assert back.extra["gap"] == math.inf
    assert back.model_dump(exclude={"extra"}) == outcome.model_dump(exclude={"extra"})
    assert back.job.id == folder.name


def test_unfinished_job_has_no_outcome(tmp_path: Path) -> None:
    folder = spool.job_folder(tmp_path, "abc")
    assert spool.read_outcome(folder) is None
    folder.mkdir(parents=True)
    (folder / f"{spool.TEMPORARY_PREFIX}x").write_text("{")
    assert spool.read_outcome(folder) is None
    assert spool.statuses(tmp_path) == {}
    assert spool.stamps(tmp_path) == {}
    assert list(spool.iter_outcomes(tmp_path)) == []


def test_no_results_folder_is_an_empty_spool(tmp_path: Path) -> None:
    assert spool.statuses(tmp_path / "none") == {}
    assert list(spool.iter_outcomes(tmp_path / "none")) == []


def test_text_that_is_no_unicode_is_written_all_the_same(tmp_path: Path) -> None:
    outcome = make_outcome(make_job(), status="failed")
    assert outcome.error is not None
    outcome.error.message = "no file caf\udce9.txt"
    put(tmp_path, outcome)
    back = spool.read_outcome(spool.job_folder(tmp_path, outcome.id))
    assert back is not None
    assert back.error is not None
    assert back.error.message == "no file caf?.txt"


def test_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()
    put(tmp_path, make_outcome(job, 0.5))
    folder = spool.job_folder(tmp_path, job.id)

    def no_space(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        spool.write_outcome(folder, make_outcome(job, 0.9))
    assert [path.name for path in folder.iterdir()] == [spool.OUTCOME]
    kept = spool.read_outcome(folder)
    assert kept is not None
    assert kept.headline == 0.5


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    job = make_job(params={"text": "x" * 50_000})
    folder = spool.job_folder(tmp_path, job.id)
    put(tmp_path, make_outcome(job, 0.0))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            spool.write_outcome(folder, make_outcome(job, 0.5))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {spool.read_outcome(folder).headline for _ in range(200)}  # type: ignore[union-attr]
    finally:
        stop.set()
        writer.join()
    assert seen <= {0.0, 0.5}


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '"x"', "{}", '{"status": "fine"}', "\x00\x00", "[" * 100_000],
    ids=["empty", "cut", "list", "string", "object", "status", "zeros", "deep"],
)
def test_damage_is_named_and_skipped(tmp_path: Path, damage: str) -> None:
    good, bad = put(tmp_path, grid({"kd": [0.5, 0.6]}))
    path = spool.job_folder(tmp_path, bad.id) / spool.OUTCOME
    path.write_text(damage)
    problems: list[Problem] = []
    assert [outcome.id for outcome in spool.iter_outcomes(tmp_path, problems)] == [good.id]
    assert spool.statuses(tmp_path, problems) == {good.id: "ok"}
    assert [problem.place for problem in problems] == [str(path)] * 2
    with pytest.raises(UsageError, match="damaged outcome"):
        spool.read_outcome(path.parent)


def test_damage_without_a_list_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (outcome,) = put(tmp_path, make_outcome(make_job()))
    path = spool.job_folder(tmp_path, outcome.id) / spool.OUTCOME
    path.write_text("{")
    assert list(spool.iter_outcomes(tmp_path)) == []
    assert str(path) in caplog.text


def test_newer_form_is_refused_with_its_version(tmp_path: Path) -> None:
    (outcome,) = put(tmp_path, make_outcome(make_job()))
    folder = spool.job_folder(tmp_path, outcome.id)
    content = json.loads((folder / spool.OUTCOME).read_text())
    for more in ({"schema_version": 99}, {"schema_version": 99, "brand_new": 1}):
        (folder / spool.OUTCOME).write_text(json.dumps(content | more))
        with pytest.raises(UsageError, match="version 99"):
            spool.read_outcome(folder)


@pytest.mark.parametrize("id", ["", ".", "..", "../x", "a/b", "/etc", "a\0b"])
def test_ids_stay_in_the_folder(tmp_path: Path, id: str) -> None:
    with pytest.raises(ValueError, match="not the id"):
        spool.job_folder(tmp_path, id)


def test_stamp_changes_when_an_outcome_is_replaced(tmp_path: Path) -> None:
    job = make_job()
    put(tmp_path, make_outcome(job, 0.5))
    before = spool.stamps(tmp_path)
    put(tmp_path, make_outcome(job, 0.6))
    assert before.keys() == spool.stamps(tmp_path).keys() == {job.id}
    assert before != spool.stamps(tmp_path)


def test_find_job_by_prefix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no jobs yet"):
        spool.find_job(tmp_path, "a")
    for name in ("aa11", "aa22", "bb33"):
        spool.job_folder(tmp_path, name).mkdir(parents=True)
    assert spool.find_job(tmp_path, "b").name == "bb33"
    assert spool.find_job(tmp_path, "aa11").name == "aa11"
    with pytest.raises(UsageError, match="2 jobs have an id that starts with 'aa': aa11, aa22"):
        spool.find_job(tmp_path, "aa")
    with pytest.raises(UsageError, match="did you mean 'bb33'"):
        spool.find_job(tmp_path, "bb34")


def test_curve(tmp_path: Path) -> None:
    assert spool.read_curve(tmp_path) == []
    path = tmp_path / spool.CURVE
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    assert spool.read_curve(tmp_path) == [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": None}]
    path.write_text('{"step": 1\n{"step": 2, "loss": 1}\n')
    with pytest.raises(UsageError, match=r"curve\.jsonl:1"):
        spool.read_curve(tmp_path)
