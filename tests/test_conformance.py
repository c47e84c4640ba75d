"""Every method keeps the contract, and the conformance kit notices those that do not."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdbench.cli import make_app
from kdbench.conformance.checks import CHECKS, Finding, examine
from kdbench.conformance.evidence import Evidence, smallest_task
from kdbench.conformance.subjects import subjects
from kdbench.errors import UsageError
from kdbench.job import Outcome
from kdbench.registry import Registry, discover
from tests.helpers.plugins import write

pytest_plugins = ["pytester"]

TRAIN_NOTHING = {
    f"{track}/{slug}"
    for track, slugs in {
        "vision": ["teacher"],
        "llm": ["student_init", "teacher"],
        # what deco_g fits is counted, by expectation maximization
        "decoding": [
            *("ar", "self_draft", "ngram_draft", "jacobi_vanilla", "prompt_format", "hard_mask", "reformat"),
            "deco_g",
        ],
        "diffusion": ["teacher", "teacher_few", "naive_one_step", "real_floor"],
        "reasoning_rl": ["base", "teacher", "expert_average"],
        # the filter of learn2pd is fitted to a few numbers, and metered apart
        "dllm": [
            *("seq", "oracle", "topk", "threshold", "factor", "full_parallel", "ar_ref"),
            *("freedave", "parallelbench", "learn2pd"),
        ],
        # images, graphs and trees that are chosen; networks learn from them in the evaluation
        "dataset_distillation": [
            *("full", "random", "random_soft", "kmeans", "herding", "class_mean"),
            *("mirage", "random_trees"),
        ],
        # ppo trains in a loop of its own, on batches that worlds give: an interrupted job starts anew
        "policy": ["random", "expert", "safe_baseline", "ucbvi", "stepmix", "ppo"],
    }.items()
    for slug in slugs
}
"""Methods that train no network; whatever is about optimizer steps says nothing of them."""
ABOUT_TRAINING = {"costs", "resumes", "seeds differ", "student changes", "batch of one", "odd last batch"}


@cache
def registry() -> Registry:
    return discover()


def test_every_plugin_file_of_the_repository_is_a_method():
    assert registry().broken == []
    files = {path for path in Path("plugins/kdbench_methods").rglob("*.py") if path.name != "__init__.py"}
    assert {method.path.resolve() for method in registry().methods.values()} >= {path.resolve() for path in files}


@pytest.mark.parametrize("key", sorted(registry().methods))
def test_method(key: str, tmp_path: Path):
    method = registry().methods[key]
    evidence = Evidence(registry(), method, smallest_task(registry(), method), tmp_path)
    found = {item.check: item for item in examine(evidence)}
    assert [item for item in found.values() if item.state == "failed"] == []
    skipped = {item.check for item in found.values() if item.state == "does not apply"}
    allowed = {"cuda", "odd last batch", "student changes"} | (ABOUT_TRAINING if key in TRAIN_NOTHING else set())
    assert skipped <= allowed

    outcome = evidence.first.outcome
    official = {metric.name for metric in evidence.spec.all_metrics()}
    assert set(outcome.metrics) == official
    assert outcome.headline == outcome.metrics[evidence.spec.headline.name]
    stored = json.loads((evidence.first.folder / "outcome.json").read_text())
    assert Outcome.model_validate(stored) == outcome


# --- the kit ----------------------------------------------------------------------------------------------------------

SOUND = '''
"""A sound method of a test: cross-entropy."""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy, kd_kl

CARD = Baseline(slug="{slug}", title="A method", track="vision", tasks=["classify"])


class MethodParams(Params):
    """One knob."""

    weight: float = Field(0.5, ge=0, le=1, description="of the divergence")


@hookimpl
def train(task, params):
    student = task.student()

    def loss(model, batch):
        logits = model(batch.x)
        return cross_entropy(logits, batch.y) + params.weight * kd_kl(logits, task.teacher_logits(batch), 4.0)

    task.fit(student, loss)
    return student


@hookimpl
def evaluate(task, model):
    return task.score(model)
'''

FAULTS: dict[str, tuple[str, str, str]] = {
    "no docstring": ("card", '"""A sound method of a test: cross-entropy."""\n', ""),
    "unknown task": ("card", 'tasks=["classify"]', 'tasks=["classify", "clasify"]'),
    "no bounds": ("parameters", "Field(0.5, ge=0, le=1, ", "Field(0.5, "),
    "does not train": ("trains", "student = task.student()\n", "student = task.pupil()\n"),
    "spends too much": ("trains", "task.fit(student, loss)", "task.fit(student, loss, steps=10**6)"),
    "a loop without meters": (
        "costs",
        "task.fit(student, loss)",
        "task.budget.spend('steps', 1)\n    [p.data.add_(0.1) for p in student.parameters()]",
    ),
    "clocks": ("deterministic", "params.weight * kd_kl", "(__import__('time').time_ns() % 1000 / 1000) * kd_kl"),
    "hidden state": (
        "resumes",
        "    task.fit(student, loss)",
        "    seen = []\n    task.fit(student, loss, on_step=lambda step: seen.append(loss))",
    ),
    "one seed": (
        "seeds differ",
        "    student = task.student()\n",
        "    task.seed = 0\n    task.budget.spend('steps', 1)\n    student = task.student()\n    return student\n",
    ),
    "untrained": ("student changes", "return student\n", "return task.student()\n"),
    "gradient for the teacher": (
        "teacher untouched",
        "    task.fit(student, loss)",
        "    task.fit(student, loss)\n    next(task.teacher().parameters()).requires_grad_(True)",
    ),
    "peeking": (
        "test data untouched",
        "    task.fit(student, loss)",
        "    task.fit(student, loss)\n    try:\n        task.score(student)\n    except Exception:\n        pass",
    ),
    "pretending": (
        "test data untouched",
        "    task.fit(student, loss)",
        "    task.fit(student, loss)\n    task.phase = 'evaluate'\n    task.score(student)\n    task.phase = 'train'",
    ),
    "settings": (
        "no state left",
        "    student = task.student()\n",
        "    import torch\n\n    torch.use_deterministic_algorithms(False)\n    student = task.student()\n",
    ),
    "environment": (
        "no state left",
        "    student = task.student()\n",
        "    import os\n\n    os.environ['LEFT'] = str(task.seed)\n    student = task.student()\n",
    ),
    "files elsewhere": (
        "no state left",
        "    student = task.student()\n",
        "    open({elsewhere!r}, 'w').close()\n    student = task.student()\n",
    ),
    "temporary files": (
        "no state left",
        "    student = task.student()\n",
        "    import tempfile\n\n    tempfile.mkdtemp()\n    student = task.student()\n",
    ),
    "unsaved state": (
        "save and load",
        "    return student\n",
        "    import torch\n\n    student.register_forward_hook(lambda module, args, out: -out)\n    return student\n",
    ),
    "one sample": (
        "batch of one",
        "return cross_entropy",
        "logits = logits / logits.std(0)\n        return cross_entropy",
    ),
}


def findings(path: Path, folder: Path) -> dict[str, Finding]:
    found, (method,) = subjects([str(path)])
    return {item.check: item for item in examine(Evidence(found, method, smallest_task(found, method), folder))}


def test_a_sound_method_passes_every_check(tmp_path):
    found = findings(write(tmp_path / "sound.py", SOUND.replace("{slug}", "sound")), tmp_path / "runs")
    assert [item for item in found.values() if item.state == "failed"] == []
    assert list(found) == list(CHECKS)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_kit_names_what_is_wrong_and_what_to_change(fault, tmp_path, monkeypatch):
    check, old, new = FAULTS[fault]
    assert old in SOUND
    text = SOUND.replace("{slug}", "faulty").replace(
        old, new.replace("{elsewhere!r}", repr(str(tmp_path / "left.txt")))
    )
    monkeypatch.setenv("LEFT", "before")
    found = findings(write(tmp_path / "faulty.py", text), tmp_path / "runs")
    assert found[check].state == "failed", found
    assert found[check].message
    assert found[check].advice


def test_what_is_no_method_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no card"):
        subjects([str(write(tmp_path / "empty.py", "x = 1\n"))])
    with pytest.raises(UsageError, match="there is no method 'nothing'"):
        subjects(["nothing"])
    found, (method,) = subjects(
        [str(write(tmp_path / "lost.py", SOUND.replace("{slug}", "lost").replace('"classify"', '"x"')))]
    )
    with pytest.raises(UsageError, match="belongs to no task"):
        smallest_task(found, method)


def run_command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(make_app(), ["test-method", *arguments])
    return result.exit_code, result.output


def test_the_command_prints_every_check_and_its_exit_code_tells(tmp_path):
    sound = write(tmp_path / "sound.py", SOUND.replace("{slug}", "sound"))
    code, text = run_command(str(sound))
    assert code == 0
    assert "vision/sound on vision/" in text
    assert all(name in text for name in CHECKS)
    faulty = write(tmp_path / "faulty.py", SOUND.replace("{slug}", "faulty").replace("ge=0, le=1, ", ""))
    code, text = run_command(str(faulty), "--json")
    assert code == 1
    (report,) = json.loads(text)
    assert [item["check"] for item in report["findings"] if item["state"] == "failed"] == ["parameters"]
    assert run_command("nothing")[0] == 2


def test_pytest_runs_the_checks_of_a_method(pytester, tmp_path):
    faulty = write(tmp_path / "faulty.py", SOUND.replace("{slug}", "faulty").replace("ge=0, le=1, ", ""))
    result = pytester.runpytest_subprocess(f"--kdbench-method={faulty}", "-rs")
    result.assert_outcomes(passed=len(CHECKS) - 2, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*the parameter weight has no bounds*", "*what to change:*"])
    missing = pytester.runpytest_subprocess("--kdbench-method=nothing")
    assert missing.ret == pytest.ExitCode.USAGE_ERROR
    missing.stderr.fnmatch_lines(["*there is no method 'nothing'*"])


def test_the_plugin_imports_nothing_heavy_before_it_is_asked():
    import subprocess
    import sys

    code = "import sys, kdbench.conformance.plugin; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_check_is_found_wanting_by_some_fault():
    checked: set[str] = {check for check, _, _ in FAULTS.values()}
    assert set(CHECKS) - checked == {"cuda", "odd last batch"}, "the first needs a GPU; the second is one of size"
