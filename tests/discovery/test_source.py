"""Reading plugins from their source: the same cards as executing them, and every flaw at its place."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from kdbench.cards import Baseline, Compare, Paper
from kdbench.discovery.cards import CHECKS
from kdbench.discovery.modules import load_module
from kdbench.discovery.source import MAX_BYTES, read
from tests.helpers.plugins import METHOD, write

RICH = '''"""A paper with everything a card can hold."""

import importlib
import os.path as path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from numpy import array
from kdbench import Compare, Field, Params, hookimpl
from kdbench.cards import Paper as Article

try:
    import optional_speedup
except ImportError:
    optional_speedup = None

if TYPE_CHECKING:
    import only_for_types

PAPER = Article(
    slug="rich-one_2",
    title="Ünïcode – and “quotes”",
    track="vision",
    tasks=("classify", "digits-gap"),
    requires=["logits", "features"],
    tags=[],
    year=2024,
    venue="ICLR",
    arxiv="2402.01234",
    source="code",
    departures=["one " "text"],
    claims=(
        Compare(metric="top1", subject="rich-one_2", tasks=["classify"],
                reference={"method": "kd", "params": {"weight": -1.5, "n": [1, (2,)]}},
                margin=-0.5, kind="noninferior", note="x"),
    ),
)


class RichParams(Params):
    """Doc."""

    steps: int = Field(3, ge=1, description="number")

    @property
    def double(self):
        return 2 * self.steps


@hookimpl
def train(task, params):
    import inside_a_function


@hookimpl(trylast=True)
def evaluate(model, task):
    return {}
'''


def flaws_of(folder: Path, text: str) -> list[str]:
    path = write(folder / "plugin.py", text)
    return [f"{flaw.line}:{flaw.column}: {flaw.reason} ({flaw.hint})" for flaw in read(path).flaws]


def test_the_card_is_the_very_object_that_executing_the_module_builds(tmp_path, monkeypatch):
    path = write(
        tmp_path / "rich.py", RICH.replace("import torch\n", "").replace("import torch.nn.functional as F\n", "")
    )
    reading = read(path)
    assert reading.flaws == ()
    assert reading.card == load_module(path, None).PAPER
    assert isinstance(reading.card.tasks, tuple)
    assert isinstance(reading.card.claims[0].reference["params"]["n"][1], tuple)


def test_imports_are_the_unconditional_ones_of_third_parties(tmp_path):
    assert read(write(tmp_path / "rich.py", RICH)).imports == ("torch", "numpy")


def test_reading_never_executes(tmp_path):
    marker = tmp_path / "marker"
    text = f"open({str(marker)!r}, 'w').close()\nraise SystemExit(3)\n" + METHOD.format(slug="calm", track="vision")
    reading = read(write(tmp_path / "calm.py", text))
    assert reading.flaws == ()
    assert reading.card.slug == "calm"
    assert not marker.exists()


@pytest.mark.parametrize("cls", [Paper, Baseline, Compare])
def test_every_field_of_every_card_is_checked(cls):
    checked = {name for base in cls.__mro__ for name in CHECKS.get(base, {})}
    assert checked == {field.name for field in fields(cls)}


@pytest.mark.parametrize(
    ("old", "new", "place", "reason", "hint"),
    [
        ('slug="m"', 'slug="Not A Slug"', "5:22", "slug must be lower-case", ""),
        ('slug="m"', 'slug="m" + suffix', "5:22", "slug: 'm' + suffix is not a literal", "write the value itself"),
        ('slug="m"', 'slug=f"{x}"', "5:22", "is not a literal", "without executing"),
        ('slug="m", ', "", "5:8", "Baseline lacks slug", "add slug=..."),
        ('slug="m"', 'slug="m", **more', "5:29", "** in Baseline(...) is not a literal", "every argument"),
        ('slug="m"', '"m"', "5:17", "takes named arguments only", "name=value"),
        ('tasks=["*"]', 'taks=["*"]', "5:61", "no field 'taks'", "did you mean 'tasks' or"),
        ('tasks=["*"]', 'tasks="classify"', "5:67", "tasks must be a list of texts", "write ['classify']"),
        ('tasks=["*"]', "tasks=[]", "5:67", "tasks must name at least one", ""),
        ('tags=["test"]', "tags=[1]", "5:79", "tags must be a list of texts", ""),
        ('tags=["test"]', 'tags=["a" for a in b]', "5:79", "tags: ", "write the value itself"),
        ('tags=["test"]', 'requires=["logit"]', "5:83", "'logit' is unknown", "did you mean 'logits'?"),
        ('tags=["test"]', "claims=[Compare(metric='a')]", "5:82", "Compare lacks subject, reference, tasks", ""),
        ('tags=["test"]', "claims=[dict()]", "5:82", "dict(...) is not a literal", ""),
        (
            'tags=["test"]',
            "claims=[Compare(metric='a', subject='m', reference={'name': 'kd'}, tasks=['x'])]",
            "5:125",
            "reference has the unknown key 'name'",
            "expected method and params",
        ),
        (
            'tags=["test"]',
            "claims=[Compare(metric='a', subject='m', reference='kd', tasks=['x'], kind='equal')]",
            "5:149",
            "kind must be one of 'superior', 'noninferior', 'ratio'",
            "",
        ),
        (
            'tags=["test"]',
            "claims=[Compare(metric='a', subject='m', reference=0.5, tasks=['x'], direction='up')]",
            "5:153",
            "direction must be one of 'max', 'min'",
            "",
        ),
        (
            'tags=["test"]',
            "claims=[Compare(metric='a', subject=0.5, reference='kd', tasks=['x'])]",
            "5:110",
            "subject must name a method, not 0.5",
            "",
        ),
        ("Baseline(", "Paper(year='2024', ", "5:19", "year must be a year", ""),
        ("Baseline(", "Paper(year=2024, arxiv='2401.00001v2', ", "5:31", "without version", ""),
        ("Baseline(", "Paper(", "5:8", "Paper lacks year", ""),
        ("CARD = Baseline(", "Baseline(", "5:1", "the card is not kept", "PAPER = Paper(...)"),
        ("\nCARD = ", "\nif True:\n    CARD = ", "6:12", "not at the top level", "statement of its own"),
        ("import Baseline, ", "import ", "5:8", "Baseline is not imported", "from kdbench import Baseline"),
        (
            "\n\nclass",
            "\nOTHER = Baseline(slug='b', title='b', track='t', tasks=['*'])\n\nclass",
            "7:9",
            "a second card",
            "one file",
        ),
        ("CARD = Baseline(slug", "CARD = dict(slug", "1:1", "there is no card", "write PAPER = Paper("),
        ("@hookimpl\n", "", "12:1", "train is not decorated", "@hookimpl"),
        ("def train(", "def trian(", "13:1", "trian is no hook", "did you mean 'train'?"),
        ("def train(", "def fit(", "13:1", "fit is no hook", ""),
        (
            "@hookimpl\ndef train(task, params):\n    return task.student()\n",
            "",
            "1:1",
            "there is no train hook",
            "def train(task, params)",
        ),
        ("(task, params)", "(task, parms)", "13:17", "train has no argument 'parms'", "did you mean 'params'?"),
        ("(task, params)", "(self, task, params)", "13:11", "train has no argument 'self'", "params, task"),
        ("(task, params)", "(task, params=None)", "13:17", "has a default, so that it is never passed", "remove"),
        ("(task, params)", "(task, *, params)", "13:20", "keyword-only", "remove"),
        ("(task, params)", "(task, **kwargs)", "13:19", "never filled", "task, params"),
        ("def train", "async def train", "13:1", "must not be async", "def train"),
        (
            "@hookimpl\ndef",
            "@hookimpl\ndef kdbench_tracks():\n    return []\n\n\n@hookimpl\ndef",
            "13:1",
            "does not belong into a method",
            "",
        ),
        (
            "    return task.student()",
            "    return (task.student(",
            "14:25",
            "not valid Python: '(' was never closed",
            "",
        ),
        (
            'Field(0.5, ge=0, le=1, description="of the divergence")',
            "0.5",
            "9:5",
            "weight: has no description",
            'Field(0.5, description="...")',
        ),
        (', description="of the divergence"', "", "9:21", "weight: has no description", "with its unit"),
        ('description="of the divergence"', 'description=""', "9:21", "weight: has no description", ""),
        ("Field(0.5, ", "Field(1 / 3, ", "9:27", "default: 1 / 3 is not a literal", "write the value"),
        ("Field(0.5, ", "Field(", "9:21", "weight: has no default", "declared defaults"),
        ("Field(0.5, ", "Field(default_factory=float, ", "9:43", "default_factory", "write the value"),
        ("Field(0.5, ge=0", "Field(0.5, gte=0", "9:36", "Field has no 'gte'", ""),
        ("weight: float", "weight: np.ndarray", "9:13", "the type np.ndarray is not allowed", "allowed: int, float"),
        ("weight: float", "weight: Sequence[float]", "9:13", "is not allowed", ""),
        ("Field(0.5, ", "Field('half', ", "9:27", "is not of the type float", ""),
        ("Field(0.5, ", "Field(True, ", "9:27", "is not of the type float", ""),
        ("Field(0.5, ", "Field(2.0, ", "9:27", "outside of its own range le=1", ""),
        ("weight: float", "weight: str", "9:25", "ge does not apply to str", ""),
        ("weight: float", "_weight: float", "9:5", "do not begin with an underscore", "weight"),
        ("    weight: float =", "    weight =", "9:5", "is not a field of parameters", "name: type"),
        ("(Params):\n", "(Params):\n    model_config = {}\n", "9:5", "is not a field of parameters", ""),
        ("(Params):", "(Params, Mixin):", "8:1", "must derive from Params alone", ""),
    ],
)
def test_flaws_are_told_with_place_reason_and_hint(tmp_path, old, new, place, reason, hint):
    text = METHOD.format(slug="m", track="vision").replace('title="A method called m"', 'title="A method"')
    assert old in text
    assert flaws_of(tmp_path, text) == []
    found = flaws_of(tmp_path, text.replace(old, new))
    assert any(flaw.startswith(f"{place}: ") and reason in flaw and hint in flaw for flaw in found), found


def test_all_flaws_of_a_file_are_told_at_once(tmp_path):
    text = METHOD.format(slug="m", track="vision").replace('tasks=["*"]', "tasks=3").replace('slug="m"', "slug=1")
    found = flaws_of(tmp_path, text.replace("params)", "parms)").replace("Field(0.5", "Field(7"))
    assert len(found) == 4


def test_columns_count_characters(tmp_path):
    text = METHOD.format(slug="m", track="vision").replace('title="A method called m"', 'title="übergrößer", year=1')
    (found,) = flaws_of(tmp_path, text)
    line, column = found.split(":")[:2]
    assert text.splitlines()[int(line) - 1][int(column) - 1 :].startswith("year=1")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x = 1\n\xff\xfe = 2\n", "2:1: byte 0xff is not UTF-8"),
        (b"x = '\xe9'\n", "1:6: byte 0xe9 is not UTF-8"),
        (b"x = 1\x00\n", "not valid Python"),
        (b"x = " + b"(" * 5000 + b")" * 5000, "1:"),
        (b"#" * (MAX_BYTES + 1), "larger than 1,048,576 bytes"),
    ],
)
def test_files_that_are_no_python_are_told_as_such(tmp_path, content, reason):
    path = tmp_path / "plugin.py"
    path.write_bytes(content)
    (flaw,) = read(path).flaws
    assert reason in f"{flaw.line}:{flaw.column}: {flaw.reason}"


def test_a_byte_order_mark_is_no_flaw(tmp_path):
    path = tmp_path / "plugin.py"
    path.write_bytes(b"\xef\xbb\xbf" + METHOD.format(slug="m", track="vision").encode())
    assert read(path).flaws == ()


def test_helpers_and_extensions_are_told_apart_from_methods(tmp_path):
    assert read(write(tmp_path / "a.py", "def helper():\n    return 1\n")).kind == "other"
    extension = "import kdbench\n\n@kdbench.hookimpl\ndef kdbench_suites():\n    return {}\n"
    assert read(write(tmp_path / "b.py", extension)).kind == "extension"
    misspelt = read(write(tmp_path / "c.py", extension.replace("suites", "suits")))
    assert misspelt.kind == "extension"
    assert "kdbench_suites" in misspelt.flaws[0].hint
