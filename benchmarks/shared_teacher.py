"""What a suite of 20 methods costs with one teacher, beside 20 scripts that each train or load it and run it live.

Both train the same students from the same seeds; no time is printed unless their scores agree. See
``benchmarks/README.md``.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from compare import Check, Continue, Json, Rounds, Spread, Surroundings, earlier, finish, spent
from measure import HERE, Failed, script
from rich.table import Table

METHODS: tuple[dict[str, Any], ...] = (
    *({"method": name} for name in ("kd", "dist", "kd_dkd", "logit_standardization", "pld", "bd_kd", "dual_head_kd")),
    *({"method": name} for name in ("kd_recalibrated", "fitnet", "rkd", "sp", "ofa_kd", "token_relationship_graph")),
    *({"method": name} for name in ("mixup_kd", "sparse_kd", "random_subset", "hard_augmentations")),
    {"method": "kd", "params": {"temperature": 2.0}},
    {"method": "logit_standardization", "params": {"host": "dist"}},
    {"method": "pld", "params": {"variant": "listmle"}},
)
SEEDS = 3
TASK = "vision/shapetex"
LIMIT = 1.05
"""Of what a suite costs without its teacher, as a part of the students' own training; processor seconds."""
APART = 0.05
"""Largest difference of the mean scores of a method: outputs of a batch and of all images differ by rounding."""


@dataclass(frozen=True)
class Round:
    """Processor seconds of one run of the suite, and of some of the scripts."""

    suite: float
    """The whole command, with all its processes."""
    wall: float
    train: float
    """Of the jobs: in ``train``."""
    evaluate: float
    """In ``evaluate``; seconds of the clock, as nothing else is noted of it."""
    teacher: float
    """Training it once: the median of the scripts, which all do it."""
    scripts: dict[str, float]
    """By method: the whole script, its teacher included."""
    teachers: dict[str, float]
    """The part of each that is its teacher."""
    apart: float
    """Largest difference of a method's mean score."""
    busy: float
    """Cores that other programs kept busy meanwhile."""

    @property
    def beyond(self) -> float:
        """What the suite takes without the teacher, over the students' own training."""
        return (self.suite - self.teacher) / self.train


def suite(folder: Path, methods: int, steps: int, teacher_steps: int) -> Path:
    """Write the suite."""
    task = {"task": TASK, "override": {"teacher": {"steps": teacher_steps}}}
    content = {
        "name": "shared-teacher",
        "tasks": [task],
        "methods": list(METHODS[:methods]),
        "seeds": SEEDS,
        "budget": {"steps": steps},
        "tracking": False,
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def measured(folder: Path, path: Path, workers: int, chosen: Sequence[int]) -> Round:
    """The suite in an empty cache, then chosen methods as scripts of their own.

    ``chosen`` counts methods in the order of their labels. Raises ``Failed`` where scores differ.
    """
    around = Surroundings()
    cache, results = folder / "cache", folder / "results"
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    home = os.pathsep.join([str(HERE.parent), str(HERE.parent / "plugins")])
    variables = {**threads, "PYTHONPATH": home, "KDBENCH_CACHE": str(cache)}
    command = [script("kdbench"), "run", str(path), "--results", str(results), "--workers", str(workers)]
    run = spent(command, variables)
    raw = [json.loads(file.read_text()) for file in (results / "jobs").glob("*/outcome.json")]
    bad = [one for one in raw if one["status"] != "ok"]
    if bad:
        raise Failed(f"{bad[0]['job']['label']}: {bad[0]['error']}")
    by: dict[str, list[dict[str, Any]]] = {}
    for one in raw:
        by.setdefault(one["job"]["label"], []).append(one)
    scripts, teachers, apart = {}, {}, 0.0
    for label in (sorted(by)[number] for number in chosen):
        outcomes, own = sorted(by[label], key=lambda one: one["id"]), folder / "script"
        shutil.copytree(cache, own / "cache", ignore=shutil.ignore_patterns("teacher", "outputs", "*.lock"))
        (own / "jobs.json").write_text(json.dumps([one["job"] for one in outcomes]))
        command = [sys.executable, str(HERE / "peers" / "separate_script.py"), str(own / "jobs.json"), str(own)]
        said, scripts[label] = _script(command, {**variables, "KDBENCH_CACHE": str(own / "cache")})
        teachers[label] = said["teacher"]
        mean = statistics.mean(one["headline"] for one in outcomes)
        difference = abs(mean - statistics.mean(said["scores"].values()))
        if said["scores"].keys() != {one["id"] for one in outcomes} or not difference <= APART:
            raise Failed(f"{label}: the suite scores {mean:.3f}, the script is {difference:.3f} away from it")
        apart = max(apart, difference)
        shutil.rmtree(own)
        print(f"{label}: measured", file=sys.stderr)
    return Round(
        suite=run.cpu,
        wall=run.wall,
        train=sum(one["cost"]["device_seconds"] for one in raw),
        evaluate=sum(one["cost"]["eval_seconds"] for one in raw),
        teacher=statistics.median(teachers.values()),
        scripts=scripts,
        teachers=teachers,
        apart=apart,
        busy=around.busy(),
    )


def _script(command: Sequence[str], variables: dict[str, str]) -> tuple[dict[str, Any], float]:
    """What a script prints, and its processor seconds."""
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    after = os.times()
    if done.returncode:
        raise Failed(f"exit code {done.returncode}: {' '.join(command)}\n{done.stderr[-3000:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout.splitlines()[-1]), used


def table(rounds: Sequence[Round]) -> Table:
    """The parts for people; factors are over the students' own training."""
    shown = Table(box=None, pad_edge=False)
    for name in ("", "CPU s", "of the students' training"):
        shown.add_column(name, justify="left" if not name else "right")

    def row(name: str, values: list[float]) -> None:
        part = Spread.of([value / one.train for value, one in zip(values, rounds, strict=True)])
        shown.add_row(name, Spread.of(values).show(), part.show())

    row("the suite: everything", [one.suite for one in rounds])
    row("  the students' own training", [one.train for one in rounds])
    row("  their evaluation (clock)", [one.evaluate for one in rounds])
    row("  the teacher, once", [one.teacher for one in rounds])
    row("  all else: processes, data, stores", [one.suite - one.train - one.evaluate - one.teacher for one in rounds])
    row("the suite without the teacher", [one.suite - one.teacher for one in rounds])
    scripts = {label: cpu for one in rounds for label, cpu in one.scripts.items()}
    teachers = {label: cpu for one in rounds for label, cpu in one.teachers.items()}
    train = statistics.median(one.train for one in rounds)
    for name, parts in (("train", [0.0] * len(scripts)), ("load", [teachers[label] for label in scripts])):
        total = sum(scripts.values()) - sum(parts)
        shown.add_row(f"{len(scripts)} scripts that {name} the teacher", f"{total:.3g}", f"{total / train:.3g}")
    return shown


def missed(rounds: Sequence[Round]) -> list[str]:
    """Which goals kdbench misses, one sentence each."""
    beyond = Spread.of([one.beyond for one in rounds])
    if beyond.median <= LIMIT:
        return []
    return [
        f"without the teacher the suite takes {beyond.median:.3f} of the students' own training, more than {LIMIT:g}"
    ]


def main(
    methods: Annotated[int, typer.Option(min=1, max=len(METHODS), help="Methods, each with three seeds.")] = len(
        METHODS
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps of a student.")] = 500,
    teacher_steps: Annotated[int, typer.Option(min=1, help="Steps of the teacher.")] = 100,
    scripts: Annotated[int, typer.Option(min=1, help="Scripts of a round: one round goes on after the other.")] = 4,
    workers: Annotated[int, typer.Option(min=1, help="Jobs at once.")] = os.cpu_count() or 1,
    rounds: Rounds = 5,
    more: Continue = False,
    check: Check = False,
    json_file: Json = None,
) -> None:
    """Measure what a suite costs whose methods share their teacher, beside scripts that do not."""
    around = Surroundings()
    settings = {"methods": methods, "seeds": SEEDS, "steps": steps, "teacher_steps": teacher_steps}
    settings |= {"scripts": scripts, "workers": workers}
    try:
        found = [Round(**one) for one in earlier(json_file, settings, more)]
        for number in range(len(found), len(found) + rounds):
            with tempfile.TemporaryDirectory(prefix="kdbench-shared-") as folder:
                path = suite(Path(folder), methods, steps, teacher_steps)
                chosen = [one % methods for one in range(number * scripts, (number + 1) * scripts)]
                found.append(measured(Path(folder), path, workers, chosen))
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    what = {"machine": around.end(), "settings": settings, "rounds": [asdict(one) for one in found]}
    busy = Spread.of([one.busy for one in found]).show()
    lines = [
        around.machine,
        f"other programs kept {busy} of {os.cpu_count()} cores busy meanwhile",
        f"{methods} methods, {SEEDS} seeds, {steps} steps of a student; {len(found)} rounds: median (least-most)",
        f"scores of suite and scripts are at most {max(one.apart for one in found):.3f} apart",
    ]
    finish(table(found), what, missed(found), lines=lines, path=json_file, check=check)


if __name__ == "__main__":
    typer.run(main)
