"""Memory and time of distillation losses over large vocabularies, beside TRL and Liger-Kernel.

Every way takes the same step, from hidden states and heads of both models to the gradients of the student's, in a
process of its own. No time is printed unless all gradients are those of the formula in float64. See
``benchmarks/README.md``.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from compare import PACKAGES, Check, Json, PeerFolder, Peers, Rounds, Spread, Surroundings, Worker, finish, packages
from measure import HERE, Failed
from rich.table import Table
from scheduler import MIB

PEERS = ("trl", "liger")
"""Packages that losses are compared with."""
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
    cpu: Spread
    """Processor seconds of a step."""
    wall: Spread


def error(found: Path, exact: Path) -> float:
    """Largest relative error of the gradients in a file."""
    from safetensors.torch import load_file

    mine, theirs = load_file(found), load_file(exact)
    return max(float((mine[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


def measured(case: Case, ways: dict[str, list[Path]], sizes: dict[str, Any], rounds: int) -> list[Row]:
    """All ways of one case: gradients first, then steps in turn. Raises ``Failed`` where a gradient is wrong."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdbench-gradients-")))

        def worker(way: str, path: Sequence[Path]) -> Worker:
            config = {**asdict(case), **sizes, "way": way}
            return Worker(HERE / "peers" / "vocabulary_step.py", config, path=path, threads=sizes["threads"])

        reference = worker("exact", [])
        exact = folder / "exact.safetensors"
        reference.ask(f"first {exact}")
        reference.close()  # before the others, who would have less memory
        workers, peaks, errors = {}, {}, {}
        for way, path in ways.items():
            workers[way] = worker(way, path)
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

    def spread(way: str, name: str) -> Spread:
        return Spread.of([step[name] for step in times[way]])

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
        mine, theirs = getattr(row, clock(device)).median, getattr(base, clock(device)).median
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
        time = getattr(row, clock(device)).median / getattr(base, clock(device)).median
        shown.add_row(
            *(f"{row.vocabulary:,}", row.dtype, row.loss, row.way),
            *(f"{row.peak / MIB:.0f}", f"{memory:.2f}"),
            *(row.cpu.show(), row.wall.show(), f"{time:.2f}", f"{row.error:.0e}"),
        )
    return shown


def main(
    vocabulary: Annotated[list[int] | None, typer.Option(min=8, help="Sizes.  [default: 32768 131072 262144]")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16; both by default.")] = None,
    loss: Annotated[list[str] | None, typer.Option(help="fkl, rkl, jsd, srkl; all by default.")] = None,
    positions: Annotated[int, typer.Option(min=1, help="Scored tokens of a batch.")] = 512,
    width: Annotated[int, typer.Option(min=1, help="Hidden width of the student.")] = 256,
    teacher_width: Annotated[int, typer.Option(min=1, help="Hidden width of the teacher.")] = 384,
    rounds: Rounds = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1,
    peers: Peers = True,
    peer_folder: PeerFolder = None,
    check: Check = False,
    json_file: Json = None,
) -> None:
    """Measure peak memory and time of a step of each loss, for each vocabulary and precision."""
    if device == "cuda" and not _cuda():
        print("error: torch finds no CUDA device here", file=sys.stderr)
        raise typer.Exit(2)
    around, rows = Surroundings(), []
    sizes = {
        "positions": positions,
        "width": width,
        "teacher_width": teacher_width,
        "device": device,
        "threads": threads,
    }
    try:
        with packages(PEERS if peers else [], peer_folder) as at:
            for case in (
                Case(size, kind, name)
                for size in vocabulary or (1 << 15, 1 << 17, 1 << 18)
                for kind in dtype or list(TOLERANCE)
                for name in loss or [*SHARED, "srkl"]
            ):
                ways = {
                    way: [at[package]] if package else []
                    for way, package in WAYS.items()
                    if package is None or (package in at and case.loss in SHARED)
                }
                rows += measured(case, ways, sizes, rounds)
                print(f"{case.vocabulary:,} tokens, {case.dtype}, {case.loss}: measured", file=sys.stderr)
    except Failed as failed:
        print(f"error: {failed}", file=sys.stderr)
        raise typer.Exit(2) from failed
    where = around.end()
    torch = f"{version('torch')} ({platform.processor() or platform.machine()})"
    used = {name: PACKAGES[name] for name in PEERS} if peers else {}
    what = {"machine": where, "torch": torch, "peers": used, "rounds": rounds, **sizes}
    lines = [
        f"{where}, torch {torch}",
        f"{positions} positions, widths {width} and {teacher_width}, {rounds} rounds; median (least-most)",
    ]
    what["rows"] = [asdict(row) for row in rows]
    finish(table(rows, device), what, unmet(rows, device), lines=lines, path=json_file, check=check)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    typer.run(main)
