"""Tasks: merged in a fixed order, validated with the place of every value, and never hidden by a damaged file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdbench.catalog import Catalog
from kdbench.errors import UsageError
from kdbench.spec import SCALES
from kdbench.track import Track
from kdbench.yamlio import Document, load
from tests.helpers.plugins import write

SPEC = """
from __future__ import annotations
from typing import Any
from kdbench.spec import SpecModel, TaskSpec

class Data(SpecModel):
    source: str
    size: int = 8
    parts: tuple[int, ...] = (1,)

class ToneSpec(TaskSpec):
    data: Data
    student: dict[str, Any] = {}

    def teacher_key(self):
        return None
"""

TASKS = """
defaults:
  family: tones
  headline: {name: error, direction: min, bounds: [0, null]}
  limits: {steps: 100, samples: 9}
  data: {source: sine, size: 16, parts: [1, 2, 3]}
tasks:
  low:
    title: Low tones
    data: {size: 32}
    student: {layers: [4, 4], act: relu}
    scales:
      smoke: {data: {size: 2, parts: [7]}, limits: {steps: 3}}
      cpu: {}
  high:
    title: High tones
    family: treble
    recipe: {lr: 0.5}
    scales:
      paper: {recipe: {optimizer: sgd}}
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a catalog with one track from the text of its tasks."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"tone_spec_{tmp_path.name}"
    write(tmp_path / f"{name}.py", SPEC)

    def make(tasks: str = TASKS, more: tuple[str, ...] = ()) -> Catalog:
        track = Track(
            name="tone",
            title="Tones",
            version=1,
            tasks=write(tmp_path / "tasks.yaml", tasks),
            spec=f"{name}:ToneSpec",
            task="x:Y",
        )
        files = [(write(tmp_path / f"more{i}.yaml", text), f"extension{i}") for i, text in enumerate(more)]
        return Catalog({"tone": track}, files)

    yield make
    sys.modules.pop(name, None)


def problems(catalog: Catalog, *args, **kwargs) -> list[str]:
    with pytest.raises(UsageError) as caught:
        catalog.resolve(*args, **kwargs)
    return [str(problem) for problem in caught.value.problems]


def test_tasks_are_listed_without_being_validated(make):
    catalog = make(TASKS.replace("source: sine", "sauce: sine"))
    assert [(e.name, e.family, e.scales) for e in catalog.entries()] == [
        ("tone/low", "tones", ("smoke", "cpu")),
        ("tone/high", "treble", ("paper",)),
    ]
    assert catalog.entries()[0].place.endswith("tasks.yaml:8:3")
    assert catalog.broken == []


def test_later_layers_win_mappings_merge_and_lists_replace(make):
    catalog = make()
    plain = catalog.resolve("tone/low")
    assert (plain.name, plain.scale, plain.family) == ("tone/low", "cpu", "tones")
    assert (plain.data.source, plain.data.size, plain.data.parts) == ("sine", 32, (1, 2, 3))
    assert plain.limits == {"steps": 100, "samples": 9}

    smoke = catalog.resolve("tone/low", "smoke")
    assert (smoke.data.source, smoke.data.size, smoke.data.parts) == ("sine", 2, (7,))
    assert smoke.limits == {"steps": 3, "samples": 9}

    changed = catalog.resolve(
        "tone/low",
        "smoke",
        {"data": {"size": 5}, "student": {"layers": [9]}, "limits": {"steps": 4, "samples": 5}},
        {"steps": 2},
    )
    assert (changed.data.size, changed.data.parts) == (5, (7,))
    assert changed.student == {"layers": [9], "act": "relu"}
    assert changed.limits == {"steps": 2, "samples": 5}
    assert next(iter(changed.limits)) == "steps"  # the primary unit stays first
    assert catalog.resolve("tone/low", "smoke") == smoke  # no layer was changed by another


def test_empty_overrides_change_nothing(make):
    catalog = make()
    assert catalog.resolve("tone/low", None, {}, {}) == catalog.resolve("tone/low")


def test_short_names_resolve_where_they_are_unique(make):
    assert make().resolve("low").name == "tone/low"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("tone/lo",), "there is no task 'tone/lo' (did you mean 'tone/low'"),
        (("lwo",), "there is no task 'lwo' (did you mean 'low'?)"),
        (("tone/low", "paper"), "the task tone/low has no scale 'paper' (its scales: cpu, smoke)"),
        (("tone/high",), "the task tone/high has no scale 'cpu' (its scales: paper)"),
        (("tone/low", "smok"), "(did you mean 'smoke'?)"),
    ],
)
def test_unknown_names_get_a_suggestion(make, args, message):
    (problem,) = problems(make(), *args)
    assert message in problem


def test_every_problem_is_told_where_it_was_written(make, tmp_path):
    tasks = TASKS.replace("source: sine, ", "").replace("{size: 32}", "{size: big}").replace("lr: 0.5", "lrr: 0.5")
    catalog = make(tasks)
    found = problems(catalog, "tone/low")
    path = tmp_path / "tasks.yaml"
    assert any(text.startswith(f"{path}:10:18: 'data.size' must be a whole number") for text in found)
    assert any("the key 'source' is missing in 'data'" in text for text in found)
    assert len(found) == 2
    (unknown,) = [text for text in problems(catalog, "tone/high", "paper") if "lrr" in text]
    assert unknown.startswith(f"{path}:18:14: unknown key 'lrr' in 'recipe'")
    assert "did you mean 'lr'" in unknown


def test_overrides_of_a_suite_keep_their_place(make, tmp_path):
    suite = write(tmp_path / "suite.yaml", "override:\n  data:\n    sice: 3\nbudget:\n  steps: many\n")
    document = load(suite)
    found = problems(make(), "tone/low", "cpu", document.at(("override",)), document.at(("budget",)))
    assert [text.split(": ")[0] for text in found] == [f"{suite}:3:5", f"{suite}:5:10"]


def test_values_keep_their_types(make):
    """Quoted numbers are text, truth values are no numbers."""
    for wrong in ({"size": "32"}, {"size": True}, {"parts": 3}, {"source": 5}):
        assert problems(make(), "tone/low", "cpu", {"data": wrong})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_has_no_digest_is_refused(make, value):
    assert problems(make(), "tone/low", "cpu", {"recipe": {"lr": value}})


@pytest.mark.parametrize("key", ["name", "family", "scale"])
def test_what_makes_the_task_cannot_be_overridden(make, key):
    (problem,) = problems(make(), "tone/low", "cpu", {key: "cpu"})
    assert f"{key} cannot be overridden" in problem


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    title: Low tones\n", "", ":9:5: the task 'low' needs a title"),
        ("family: tones", "famly: tones", "the task 'low' needs a family"),
        ("  low:", "  'Low Tones':", ":8:3: 'Low Tones' is no name of a task"),
        ("smoke: {data", "smoky: {data", ":13:7: there is no scale 'smoky' (did you mean 'smoke'?)"),
        ("cpu: {}", "cpu:", ":14:11: the scale 'cpu' must be a mapping"),
    ],
)
def test_a_task_with_a_flaw_hides_no_other(make, old, new, message):
    assert old in TASKS
    catalog = make(TASKS.replace(old, new))
    assert [entry.name for entry in catalog.entries()] == ["tone/high"]
    assert any(message in str(broken) for broken in catalog.broken), [str(broken) for broken in catalog.broken]


def test_who_asks_for_a_task_with_a_flaw_learns_why(make):
    catalog = make(TASKS.replace("cpu: {}", "cpu:"))
    (problem,) = problems(catalog, "tone/low")
    assert "must be a mapping" in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [\n", "this is not YAML"),
        ("", "the file is empty"),
        ("tasks: 3\n", "'tasks' must be a mapping"),
        ("task: {}\n", "unknown key 'task' (did you mean 'tasks'"),
        ("defaults: 3\ntasks: {}\n", "'defaults' must be a mapping"),
        ("track: vision\ntasks: {}\n", "there is no track 'vision' here"),
    ],
)
def test_a_damaged_file_is_told_and_hides_no_other(make, text, message):
    catalog = make(text, more=("track: tone\ntasks: {mid: {title: M, family: f, scales: {cpu: {}}}}\n",))
    assert [entry.name for entry in catalog.entries()] == ["tone/mid"]
    assert any(message in str(broken) for broken in catalog.broken), [str(broken) for broken in catalog.broken]
    assert any(message in problem for problem in problems(catalog, "tone/low"))


def test_an_extension_adds_tasks_on_the_defaults_of_the_track(make):
    more = """
    track: tone
    defaults: {data: {size: 64}}
    tasks:
      mid: {title: Middle tones, scales: {cpu: {}}}
      low: {title: Low again, scales: {cpu: {}}}
    """
    catalog = make(more=(more, "tasks: {}\n", "track: tune\ntasks: {}\n"))
    spec = catalog.resolve("tone/mid")
    assert (spec.family, spec.data.source, spec.data.size) == ("tones", "sine", 64)
    assert catalog.resolve("tone/low").title == "Low tones"
    told = [f"{broken.source}: {broken}" for broken in catalog.broken]
    assert any("the task tone/low is defined already at" in text for text in told)
    assert any(text.startswith("extension1") and "does not say which track" in text for text in told)
    assert any(text.startswith("extension2") and "did you mean 'tone'" in text for text in told)


def test_a_track_without_its_spec_is_a_usage_error(make, tmp_path):
    track = Track(name="t", title="T", version=1, tasks=tmp_path / "tasks.yaml", spec="no_such_module:Spec", task="x:Y")
    write(tmp_path / "tasks.yaml", TASKS)
    (problem,) = problems(Catalog({"t": track}), "t/low")
    assert "the track t cannot be used: No module named 'no_such_module'" in problem


def test_every_task_of_the_repository_resolves_at_every_scale():
    from kdbench.registry import discover

    registry = discover()
    seen = set()
    for entry in registry.tasks():
        for scale in entry.scales:
            spec = registry.task(entry.name, scale)
            assert (spec.name, spec.scale, spec.family) == (entry.name, scale, entry.family)
            seen.add(scale)
    assert seen <= set(SCALES)
    assert {"smoke", "quick", "cpu"} <= seen
    assert not [broken for broken in registry.broken if "tasks.yaml" in broken.place]


def test_a_given_document_is_not_changed(make):
    document = Document.of({"data": {"size": 3}}, "override")
    make().resolve("tone/low", "cpu", document, {"steps": 1})
    assert document.data == {"data": {"size": 3}}
    assert isinstance(document.path, Path)
