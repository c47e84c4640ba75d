"""What a command takes before it does anything: kdbench with 226 methods, benchopt, lm-eval and MLflow.

Every command is a process of its own, in turn; what it prints is looked at once, and the modules that it imports are
counted. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from compare import Check, Json, PeerFolder, Peers, Rounds, Spread, Surroundings, environment, finish, spent
from measure import HERE, Failed, script
from rich.table import Table

METHOD = '''"""Number {number}: returns the untrained student."""

from kdbench import Baseline, Field, Params, hookimpl

BASELINE = Baseline(slug="made_{number}", title="Do nothing, {number}", track="vision", tasks=["*"])


class MadeParams(Params):
    """One number."""

    weight: float = Field(0.5, ge=0, le=1, description="Changes nothing.")


@hookimpl
def train(task, params):
    return task.student()
'''
"""A method of a dropped-in plugin, of which there are as many as it takes."""


@dataclass(frozen=True)
class Command:
    """A command line that is measured."""

    name: str
    words: Sequence[str]
    does: str
    """What kdbench's is compared with: commands that do the nearest thing have the same text."""
    says: str
    """A part of what it prints."""
    limit: float | None = None
    """Processor seconds."""
    cold: Path | None = None
    """What is removed before each run."""
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A measured command."""

    name: str
    does: str
    cpu: Spread
    """Processor seconds of the command and its children."""
    wall: Spread
    modules: int
    """That it imports, those of Python's standard library included."""
    limit: float | None

    @property
    def met(self) -> bool:
        return self.limit is None or self.cpu.median < self.limit


def ours(folder: Path, methods: int, suite: str) -> list[Command]:
    """kdbench's commands, with its own methods and as many dropped-in ones as make up ``methods``."""
    plugins = folder / "plugins"
    plugins.mkdir()
    variables = {
        "KDBENCH_CACHE": str(folder / "cache"),
        "KDBENCH_PLUGINS": str(plugins),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent / "plugins")]),
    }
    known = _count(variables)
    for number in range(max(0, methods - known)):
        (plugins / f"made_{number}.py").write_text(METHOD.format(number=number))
    time.sleep(2.1)  # files that have just changed are not kept in the index
    kdbench, index, results = script("kdbench"), folder / "cache" / "index.json", folder / "results"
    found = f"{max(methods, known)} methods"
    listing = [kdbench, "methods"]
    return [
        Command("kdbench --help", [kdbench, "--help"], "help", "Compare knowledge-distillation", 0.3, None, variables),
        Command("kdbench methods", listing, "list", found, 0.3, None, variables),
        Command("kdbench methods, nothing indexed", listing, "list", found, None, index, variables),
        Command(
            f"kdbench check {suite}", [kdbench, "check", suite], "check", "everything is there", 1.0, None, variables
        ),
        Command(
            f"kdbench plan {suite}",
            [kdbench, "plan", suite, "--results", str(results)],
            "plan",
            "jobs",
            1.0,
            None,
            variables,
        ),
    ]


def _count(variables: Mapping[str, str]) -> int:
    command = [sys.executable, "-c", "from kdbench.registry import discover; print(len(discover().methods))"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    if done.returncode:
        raise Failed(f"kdbench does not list its methods:\n{done.stderr[-2000:]}")
    return int(done.stdout)


def others(folder: Path, benchopt: Path) -> list[Command]:
    """The nearest commands of others."""
    offline = {"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    nothing = HERE / "peers" / "benchopt_noop"
    task = folder / "tasks"
    task.mkdir()
    (task / "nothing.yaml").write_text(
        "task: nothing\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: question\ndoc_to_target: answer\ndoc_to_choice: choices\n"
    )
    bench, lm_eval, mlflow = str(benchopt / "benchopt"), script("lm-eval"), script("mlflow")
    tracked = ["experiments", "search"]
    made = {**offline, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    return [
        Command("benchopt --help", [bench, "--help"], "help", "Usage", variables=offline),
        Command("lm-eval --help", [lm_eval, "--help"], "help", "usage", variables=offline),
        Command("mlflow --help", [mlflow, "--help"], "help", "Usage", variables=offline),
        Command("benchopt info, one solver", [bench, "info", str(nothing)], "list", "idle", variables=offline),
        Command("lm-eval ls tasks", [lm_eval, "ls", "tasks"], "list", "hellaswag", variables=offline),
        Command("mlflow experiments search, none", [mlflow, *tracked], "list", "Default", variables=made),
        Command(
            "lm-eval validate, one task",
            [lm_eval, "validate", "--tasks", "nothing", "--include_path", str(task)],
            "check",
            "nothing",
            variables=offline,
        ),
    ]


def imported(command: Command) -> int:
    """Modules that a command imports. Raises ``Failed`` where it fails or does not print what it should."""
    variables = {**os.environ, **command.variables, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        command.words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=variables
    )
    lines = done.stderr.splitlines()
    modules = {line.rsplit("|", 1)[1].strip() for line in lines if line.startswith("import time:") and "|" in line}
    said = done.stdout + "\n".join(line for line in lines if not line.startswith("import time:"))
    if done.returncode or command.says not in said:
        raise Failed(f"exit code {done.returncode}, {command.says!r} expected: {command.name}\n{said[-3000:]}")
    return len(modules)


def measured(commands: Sequence[Command], rounds: int) -> list[Row]:
    """All commands in turn, after one run of each that is not counted."""
    modules, times = {}, {command.name: [] for command in commands}  # type: dict[str, int], dict[str, list[Any]]
    for command in commands:
        modules[command.name] = imported(command)
        print(f"{command.name}: {modules[command.name]} modules", file=sys.stderr)
    for command in commands:
        if command.cold is not None:
            command.cold.unlink(missing_ok=True)
            modules[command.name] = imported(command)
    for _ in range(rounds):
        for command in commands:
            if command.cold is not None:
                command.cold.unlink()
            times[command.name].append(spent(command.words, command.variables))
    return [
        Row(
            command.name,
            command.does,
            Spread.of([one.cpu for one in times[command.name]]),
            Spread.of([one.wall for one in times[command.name]]),
            modules[command.name],
            command.limit,
        )
        for command in commands
    ]


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    shown = Table(box=None, pad_edge=False)
    for name in ("command", "CPU ms", "limit", "wall ms", "modules"):
        shown.add_column(name, justify="left" if name == "command" else "right")
    for row in rows:
        limit = "" if row.limit is None else f"{1000 * row.limit:g}"
        cells = (row.name, row.cpu.show(1000), limit, row.wall.show(1000), f"{row.modules}")
        shown.add_row(*cells, style=None if row.met else "red")
    return shown


def main(
    methods: Annotated[int, typer.Option(min=1, help="Methods that kdbench has at least.")] = 226,
    suite: Annotated[str, typer.Option(help="What is checked and planned.")] = "vision",
    rounds: Rounds = 7,
    peers: Peers = True,
    peer_folder: PeerFolder = None,
    check: Check = False,
    json_file: Json = None,
) -> None:
    """Measure how long commands take that only read, and how many modules they import."""
    around = Surroundings()
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdbench-startup-")))
            commands = ours(folder, methods, suite)
            if peers:
                commands += others(folder, stack.enter_context(environment("benchopt", peer_folder)))
            rows = measured(commands, rounds)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    where = around.end()
    unmet = [f"{row.name}: {row.cpu.median:.2f} s of CPU, not under {row.limit:g} s" for row in rows if not row.met]
    what = {"machine": where, "rounds": rounds, "rows": [{**asdict(row), "met": row.met} for row in rows]}
    lines = [where, f"{rounds} rounds; median (least-most)"]
    finish(table(rows), what, unmet, lines=lines, path=json_file, check=check)


if __name__ == "__main__":
    typer.run(main)
