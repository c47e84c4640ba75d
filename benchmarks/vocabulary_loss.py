"""Memory and time of distillation losses over large vocabularies, beside TRL and Liger-Kernel.

Every way takes the same step, from hidden states and heads of both models to the gradients of the student's, in a
process of its own. No time is printed unless all gradients are those of the formula in float64. See
``benchmarks/README.md``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from measure import HERE, Failed
from rich.console import Console
from rich.table import Table
from scheduler import MIB, machine

PEERS = {"trl": "trl==1.16.0", "liger": "liger-kernel==0.8.5"}
"""Packages that losses are compared with, without what they depend on: that is here already."""
WAYS = {"plain": None, "kdbench": None, "TRL": "trl", "TRL chunked": "trl", "Liger": "liger"}
"""Ways to take a step, with the package that each needs."""
SHARED = ("fkl", "rkl", "jsd")
"""Losses that the peers have, too."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest relative error of a gradient, by the norm of the difference."""
PEAK, TIME = 0.25, 1.0
"""Limits of kdbench's memory and time, as parts of the plain formula's; memory at 128k tokens and more."""


@dataclass(frozen=True)
class Case:
    """What is computed."""

    vocabulary: int
    dtype: str
    loss: str


@dataclass(frozen=True)
class Row:
    """One way to compute one case."""

    vocabulary: int
    dtype: str
    loss: str
    way: str
    error: float
    """Largest relative error of a gradient."""
    peak: float
    """Bytes that the first step needs beyond its inputs; gradients are part of it."""
    cpu: tuple[float, float, float]
    """Processor seconds of a step: median, least, most."""
    wall: tuple[float, float, float]


class Worker:
    """One way, in a process of its own, with its inputs ready."""

    def __init__(self, case: Case, way: str, sizes: dict[str, Any], path: Sequence[Path]) -> None:
        config = json.dumps({**asdict(case), **sizes, "way": way})
        home = str(HERE.parent)
        threads = {name: str(sizes["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        env = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join([home, *map(str, path)])}
        command = [sys.executable, str(HERE / "peers" / "vocabulary_step.py"), config]
        self.name = f"{way} ({config})"
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True, env=env
        )

    def ask(self, line: str) -> dict[str, float]:
        """Do one step; raises ``Failed`` where the process ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.said.seek(0)
            raise Failed(f"exit code {self.process.returncode}: {self.name}\n{self.said.read()[-3000:]}")
        found: dict[str, float] = json.loads(answer)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.said.close()


@contextmanager
def peers(wanted: Sequence[str], folder: Path | None) -> Iterator[dict[str, Path]]:
    """Folders that hold the packages, installed where they are not there; temporary unless ``folder`` is given."""
    with ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdbench-peers-")))
        found = {}
        for name in wanted:
            found[name] = home / PEERS[name].replace("==", "-")
            if not found[name].exists():
                command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(found[name])]
                done = subprocess.run([*command, PEERS[name]], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise Failed(f"{PEERS[name]} cannot be installed:\n{done.stderr[-2000:]}")
        yield found


def error(found: Path, exact: Path) -> float:
    """Largest relative error of the gradients in a file."""
    from safetensors.torch import load_file

    mine, theirs = load_file(found), load_file(exact)
    return max(float((mine[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


def measured(case: Case, ways: dict[str, list[Path]], sizes: dict[str, Any], rounds: int) -> list[Row]:
    """All ways of one case: gradients first, then steps in turn. Raises ``Failed`` where a gradient is wrong."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdbench-gradients-")))
        reference = Worker(case, "exact", sizes, [])
        exact = folder / "exact.safetensors"
        reference.ask(f"first {exact}")
        reference.close()  # before the others, who would have less memory
        workers, peaks, errors = {}, {}, {}
        for way, path in ways.items():
            workers[way] = Worker(case, way, sizes, path)
            stack.callback(workers[way].close)
            file = folder / f"{len(workers)}.safetensors"
            peaks[way] = workers[way].ask(f"first {file}")["bytes"]
            errors[way] = error(file, exact)
            file.unlink()
            if not errors[way] <= TOLERANCE[case.dtype]:
                raise Failed(f"{way}, {case}: a gradient is wrong by {errors[way]:.2g} of its norm")
        times: dict[str, list[dict[str, float]]] = {way: [] for way in workers}
        for _ in range(rounds):
            for way, worker in workers.items():
                times[way].append(worker.ask("step"))

    def spread(way: str, name: str) -> tuple[float, float, float]:
        values = [step[name] for step in times[way]]
        return statistics.median(values), min(values), max(values)

    known = asdict(case)
    return [
        Row(**known, way=way, error=errors[way], peak=peaks[way], cpu=spread(way, "cpu"), wall=spread(way, "wall"))
        for way in workers
    ]


def clock(device: str) -> str:
    """What a step is judged by: processor seconds, or on a GPU those of the clock on the wall."""
    return "wall" if device == "cuda" else "cpu"


def unmet(rows: Sequence[Row], device: str) -> list[str]:
    """Which limits kdbench does not keep, one sentence each."""
    reasons = []
    by = {(row.vocabulary, row.dtype, row.loss, row.way): row for row in rows}
    for (vocabulary, dtype, loss, way), row in by.items():
        if way != "kdbench":
            continue
        base, name = by[vocabulary, dtype, loss, "plain"], f"{loss}, {vocabulary} tokens, {dtype}"
        if vocabulary >= 1 << 17 and row.peak > PEAK * base.peak:
            reasons.append(f"{name}: {row.peak / base.peak:.2f} of the plain formula's memory, more than {PEAK}")
        mine, theirs = getattr(row, clock(device))[0], getattr(base, clock(device))[0]
        if mine > TIME * theirs:
            reasons.append(f"{name}: {mine / theirs:.2f} of the plain formula's time, more than {TIME:g}")
    return reasons


def table(rows: Sequence[Row], device: str = "cpu") -> Table:
    """The rows for people; a factor is what a way needs over what the plain formula does, in time by :func:`clock`."""
    shown = Table(box=None, pad_edge=False)
    for name in ("vocabulary", "precision", "loss", "way", "peak MiB", "factor", "CPU s", "wall s", "factor", "error"):
        shown.add_column(name, justify="left" if name in ("precision", "loss", "way") else "right")
    base: Row | None = None
    for row in rows:
        base = row if row.way == "plain" else base
        assert base is not None
        memory = row.peak / base.peak if base.peak else float("nan")
        time = getattr(row, clock(device))[0] / getattr(base, clock(device))[0]
        shown.add_row(
            *(f"{row.vocabulary:,}", row.dtype, row.loss, row.way),
            *(f"{row.peak / MIB:.0f}", f"{memory:.2f}"),
            *(_seconds(row.cpu), _seconds(row.wall), f"{time:.2f}", f"{row.error:.0e}"),
        )
    return shown


def _seconds(values: tuple[float, float, float]) -> str:
    middle, least, most = values
    return f"{middle:.3g} ({least:.3g}-{most:.3g})"


def main(
    vocabulary: Annotated[list[int] | None, typer.Option(min=8, help="Sizes.  [default: 32768 131072]")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16; both by default.")] = None,
    loss: Annotated[list[str] | None, typer.Option(help="fkl, rkl, jsd, srkl; all by default.")] = None,
    positions: Annotated[int, typer.Option(min=1, help="Scored tokens of a batch.")] = 512,
    width: Annotated[int, typer.Option(min=1, help="Hidden width of the student.")] = 256,
    teacher_width: Annotated[int, typer.Option(min=1, help="Hidden width of the teacher.")] = 384,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each way, in turn.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1,
    peer: Annotated[bool, typer.Option("--peers/--no-peers", help="Also measure TRL and Liger-Kernel.")] = True,
    peer_folder: Annotated[Path | None, typer.Option(help="Where their packages are kept for another time.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a limit is not met.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure peak memory and time of a step of each loss, for each vocabulary and precision."""
    if device == "cuda" and not _cuda():
        print("error: torch finds no CUDA device here", file=sys.stderr)
        raise typer.Exit(2)
    where, rows = machine(), []
    sizes = {
        "positions": positions,
        "width": width,
        "teacher_width": teacher_width,
        "device": device,
        "threads": threads,
    }
    try:
        with peers(list(PEERS) if peer else [], peer_folder) as at:
            for case in (
                Case(size, kind, name)
                for size in vocabulary or (1 << 15, 1 << 17)
                for kind in dtype or list(TOLERANCE)
                for name in loss or [*SHARED, "srkl"]
            ):
                ways = {
                    way: [at[package]] if package else []
                    for way, package in WAYS.items()
                    if package is None or (package in at and case.loss in SHARED)
                }
                rows += measured(case, ways, sizes, rounds)
    except Failed as failed:
        print(f"error: {failed}", file=sys.stderr)
        raise typer.Exit(2) from failed
    reasons = unmet(rows, device)
    if as_json:
        what = {"machine": where, "torch": _torch(), "peers": PEERS if peer else {}, "rounds": rounds, **sizes}
        print(json.dumps({**what, "rows": [asdict(row) for row in rows], "unmet": reasons}, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(f"{where}, torch {_torch()}", highlight=False)
        console.print(f"{positions} positions, widths {width} and {teacher_width}, {rounds} rounds", highlight=False)
        console.print(table(rows, device), highlight=False)
        for reason in reasons:
            console.print(f"not met: {reason}", style="red", highlight=False)
    if check and reasons:
        raise typer.Exit(1)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _torch() -> str:
    from importlib.metadata import version

    return f"{version('torch')} ({platform.processor() or platform.machine()})"


if __name__ == "__main__":
    typer.run(main)
