"""The benchmark of losses over a vocabulary: whole on a small case, limits and wrong gradients on planted ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SIZES = {"positions": 6, "width": 8, "teacher_width": 12, "device": "cpu", "threads": 1}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import vocabulary_loss

    return vocabulary_loss


def test_a_small_case_from_the_command_line(tmp_path: Path):
    file = tmp_path / "found.json"
    sizes = ["--vocabulary", "64", "--positions", "6", "--width", "8", "--teacher-width", "12", "--rounds", "1"]
    command = [
        sys.executable,
        str(BENCHMARKS / "vocabulary_loss.py"),
        *sizes,
        "--loss",
        "srkl",
        "--no-peers",
        "--json",
        str(file),
    ]
    done = subprocess.run([*command, "--dtype", "float32"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(file.read_text())
    assert [(row["vocabulary"], row["loss"], row["way"]) for row in said["rows"]] == [
        (64, "srkl", "plain"),
        (64, "srkl", "kdbench"),
    ]
    for row in said["rows"]:
        assert row["error"] < 1e-5
        middle, least, most = row["cpu"]
        assert 0 < least <= middle <= most


def test_a_wrong_gradient_is_no_measurement(bench, monkeypatch):
    monkeypatch.setitem(bench.TOLERANCE, "float32", 0.0)
    with pytest.raises(bench.Failed, match="a gradient is wrong"):
        bench.measured(bench.Case(64, "float32", "fkl"), {"plain": []}, SIZES, 1)


def test_a_step_that_fails_says_why(bench):
    with pytest.raises(bench.Failed, match="No module named 'trl'|GKDTrainer"):
        bench.measured(bench.Case(64, "float32", "fkl"), {"TRL": []}, SIZES, 1)


@pytest.fixture
def planted(bench):
    def make(memory: float, seconds: float, vocabulary: int = 1 << 17) -> list:
        known = {"vocabulary": vocabulary, "dtype": "float32", "loss": "fkl", "error": 0.0}
        spread = bench.Spread
        plain = bench.Row(**known, way="plain", peak=1e9, cpu=spread(2.0, 1.0, 3.0), wall=spread(9.0, 9.0, 9.0))
        times = {"cpu": spread(seconds, seconds, seconds), "wall": spread(1.0, 1.0, 1.0)}
        return [plain, bench.Row(**known, way="kdbench", peak=1e9 * memory, **times)]

    return make


def test_limits(bench, planted):
    assert bench.unmet(planted(0.2, 1.9), "cpu") == []
    (memory,) = bench.unmet(planted(0.3, 1.9), "cpu")
    assert "0.30 of the plain formula's memory" in memory
    assert bench.unmet(planted(0.3, 1.9, 1 << 15), "cpu") == [], "only large vocabularies have a limit of memory"
    (time,) = bench.unmet(planted(0.2, 2.2), "cpu")
    assert "1.10 of the plain formula's time" in time
    assert bench.unmet(planted(0.2, 2.2), "cuda") == [], "there the wall clock counts"


def test_the_table_has_factors(bench, planted, capsys):
    from rich.console import Console

    Console(width=200).print(bench.table(planted(0.2, 1.0)))
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[:4] == ["131,072", "float32", "fkl", "kdbench"]
    assert last[5] == "0.20"
    assert last[-2] == "0.50"
