"""What pages are made of is read once, and is what the jobs left."""

from __future__ import annotations

import pytest

from kdbench.errors import UsageError
from kdbench.leaderboard.boards import Selection
from kdbench.leaderboard.report import data
from kdbench.leaderboard.report.samples import LARGEST, LONGEST, copy_samples, sample_file, usable
from kdbench.leaderboard.report.site import build
from kdbench.registry import Registry
from kdbench.store import duck, membership, spool
from tests.helpers.claims import compare, ran, write_paper
from tests.helpers.outcomes import grid, make_job, make_outcome, put
from tests.helpers.suites import registry_of


def load(results, registry=None, **selection):
    known = Registry() if registry is None else registry
    return duck.query(results, lambda con: data.load(con, known, Selection(**selection)))


def test_boards_failures_suites_and_provenance_of_the_selection(tmp_path):
    toy = put(tmp_path, grid({"kd": [0.5, 0.6], "other": [0.5, None]}, suite="mine"))
    put(tmp_path, grid({"kd": [0.1]}, task="llm/text"))
    membership.add(tmp_path, "mine", [outcome.id for outcome in toy], None)
    everything = load(tmp_path)
    assert [board.task for board in everything.boards] == ["llm/text", "vision/toy"]
    assert everything.jobs == 5
    mine = load(tmp_path, suite="mine")
    assert [board.task for board in mine.boards] == ["vision/toy"]
    assert mine.jobs == 4
    assert mine.suites == {"vision/kd": ["mine"], "vision/other": ["mine"]}
    (failed,) = mine.failed
    assert (failed.method, failed.seed, failed.status, failed.error) == ("vision/other", 1, "failed", "planted")
    (origin,) = mine.origins["vision/kd"]
    assert (origin.jobs, origin.git_commit, origin.packages) == (2, "abc123", {"torch": "2.0"})
    assert set(mine.rows()) == {"vision/kd", "vision/other"}
    with pytest.raises(UsageError, match="suite"):
        load(tmp_path, suite="none")


def test_curves_are_means_over_seeds_of_few_points_with_both_ends(tmp_path):
    for seed in (0, 1):
        points = [{"step": step, "loss": float(step + seed)} for step in range(1000)]
        put(tmp_path, make_outcome(make_job("kd", seed)), curve=points)
    put(tmp_path, make_outcome(make_job("kd", 2), status="failed"), curve=[{"step": 0, "loss": 1e9}])
    frame = load(tmp_path).curves["vision/kd"]
    assert 40 <= len(frame) <= data.CURVE_POINTS
    steps = frame["step"].tolist()
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 999)
    assert frame["value"].tolist() == [step + 0.5 for step in steps]
    assert frame["low"].tolist() == [float(step) for step in steps]
    assert frame["high"].tolist() == [step + 1.0 for step in steps]
    assert set(frame["seeds"]) == {2}


def test_a_short_curve_is_read_whole(tmp_path):
    put(tmp_path, make_outcome(make_job("kd", 0)), curve=[{"step": step, "loss": 1.0} for step in range(30)])
    assert load(tmp_path).curves["vision/kd"]["step"].tolist() == list(range(30))


def test_claims_of_a_suite_are_those_that_its_tasks_tell_of(tmp_path):
    methods = tmp_path / "methods"
    write_paper(methods, "new", compare("new", "old", tasks=["line", "bare"]))
    write_paper(methods, "old")
    registry = registry_of(methods)
    results = tmp_path / "results"
    line = put(results, [*ran(registry, "new", [0.6, 0.7]), *ran(registry, "old", [0.1, 0.2])])
    membership.add(results, "s", [outcome.id for outcome in line], None)
    assert [finding.task for finding in load(results, registry, suite="s").findings] == ["toy/line"]
    toy = [finding.task for finding in load(results, registry, track="toy").findings]
    assert toy == ["toy/line", "toy/bare"]


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictured(results, method, seed, names, task="vision/toy"):
    outcome = make_outcome(make_job(method, seed, task=task))
    folder = spool.job_folder(results, outcome.id)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")
    outcome.artifacts = list(names)
    put(results, outcome)
    return folder


def test_pictures_of_a_method_come_from_all_its_tasks_in_turn(tmp_path):
    for task in ("vision/toy", "vision/other"):
        pictured(tmp_path, "kd", 0, [f"samples/{number}.png" for number in range(9)], task)
    pictured(tmp_path, "plain", 0, ["samples/x.txt", "model/y.png", "samples/../../z.png"])
    material = load(tmp_path)
    assert set(material.samples) == {"vision/kd"}
    found = material.samples["vision/kd"]
    assert len(found) == data.SAMPLES
    assert [sample.task for sample in found[:4]] == ["vision/other@cpu", "vision/toy@cpu"] * 2
    copy_samples(usable(material.samples, tmp_path), tmp_path, tmp_path / "site")
    assert all((tmp_path / "site" / sample_file(sample)).read_bytes() == b"picture" for sample in found)


def test_pictures_that_lie_elsewhere_or_are_too_large_are_left_out(tmp_path):
    folder = pictured(tmp_path, "kd", 0, ["samples/a.png", "samples/link.png", "samples/large.png", "samples/gone.png"])
    secret = tmp_path / "secret"
    secret.write_text("of another file")
    (folder / "samples" / "link.png").unlink()
    (folder / "samples" / "link.png").symlink_to(secret)
    (folder / "samples" / "gone.png").unlink()
    with open(folder / "samples" / "large.png", "wb") as file:
        file.truncate(LARGEST + 1)
    assert [sample.path for sample in usable(load(tmp_path).samples, tmp_path)["vision/kd"]] == ["samples/a.png"]


def test_pictures_among_the_artifacts_have_captions_of_their_own_or_their_names(tmp_path):
    names = ["artifacts/grid.png", "artifacts/grid.txt", "artifacts/noise_to-image.png", "artifacts/long.png"]
    folder = pictured(tmp_path, "kd", 0, [*names, "artifacts/long.txt", "artifacts/table.json"])
    (folder / "artifacts" / "grid.txt").write_text("Samples,\none row a class \n")
    (folder / "artifacts" / "long.txt").write_text("word " * 500)
    (folder / "artifacts" / "table.json").write_text("{}")
    pictured(tmp_path, "plain", 0, ["artifacts/table.json", "model/a.png"])
    material = load(tmp_path)
    assert set(material.samples) == {"vision/kd"}
    found = usable(material.samples, tmp_path)["vision/kd"]
    captions = {sample.path: sample.caption for sample in found}
    assert captions["artifacts/grid.png"] == "Samples, one row a class"
    assert captions["artifacts/noise_to-image.png"] == "noise to image"
    assert len(captions["artifacts/long.png"]) == LONGEST
    assert captions["artifacts/long.png"].endswith("…")
    build(tmp_path, tmp_path / "site", registry=Registry())
    page = (tmp_path / "site" / "methods" / "vision.kd.html").read_text()
    assert "Samples, one row a class" in page
    assert page.count("<img") == 3
    assert len(list((tmp_path / "site" / "samples").iterdir())) == 3


def test_a_caption_is_never_read_through_a_link(tmp_path):
    folder = pictured(tmp_path, "kd", 0, ["artifacts/grid.png"])
    (tmp_path / "secret").write_text("of another file")
    (folder / "artifacts" / "grid.txt").symlink_to(tmp_path / "secret")
    assert [sample.caption for sample in usable(load(tmp_path).samples, tmp_path)["vision/kd"]] == ["grid"]
