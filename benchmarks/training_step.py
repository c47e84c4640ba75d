"""What a step of distillation takes: a loop written by hand, ``task.fit``, torchdistill's loss, trainers of others.

All ways make the same steps on the same batches, in turn; no time is printed unless their weights are equal after the
first ones. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from compare import Check, Json, PeerFolder, Peers, Rounds, Spread, Surroundings, Worker, finish, packages
from measure import HERE, Failed
from rich.table import Table

HAND, OURS = "by hand", "kdbench"
ABOVE = 1.03
"""Limit of kdbench's processor time, as a part of the loop written by hand."""
TOLERANCE = 1e-3
"""Largest difference of the weights after the first steps, as a part of how far those steps moved them."""
FIRST = 5
"""Steps after which weights are compared."""


@dataclass(frozen=True)
class Case:
    """A pair of networks, where the teacher's outputs come from, and the loss."""

    name: str
    pair: str
    """Module of ``peers/``."""
    teacher: str
    """``cached`` or ``live``."""
    ways: tuple[str, ...]
    budget: int
    """Steps of a job of the task, over which what is spent once is spread."""
    weight: float = 0.9
    """Of the divergence; the cross-entropy has the rest."""
    temperature: float = 4.0


IMAGES, TEXTS = (HAND, OURS, "torchdistill"), (HAND, OURS, "Trainer")
CASES = (
    Case("images, cached teacher", "image_pair", "cached", IMAGES, 500),
    Case("images, live teacher", "image_pair", "live", IMAGES, 500),
    Case("text, cached teacher", "text_pair", "cached", TEXTS, 300, weight=0.5, temperature=2.0),
    Case("text, live teacher", "text_pair", "live", TEXTS, 300, weight=0.5, temperature=2.0),
    Case("text, live teacher, KL alone", "text_pair", "live", (HAND, OURS, "TRL"), 300, weight=1.0, temperature=1.0),
)
NEEDS = {"torchdistill": "torchdistill", "TRL": "trl"}
TRAINERS = ("Trainer", "TRL")
"""Ways that kdbench is to be ahead of."""


@dataclass(frozen=True)
class Row:
    """One way to take the steps of one case."""

    case: str
    way: str
    error: float
    """Difference of the weights from those of the loop written by hand, as a part of how far they moved."""
    cpu: Spread
    """Processor seconds of a step."""
    wall: Spread
    once: float
    """Processor seconds of the whole training beyond its steps: what is made before the first and after the last."""
    factor: Spread
    """Processor time of a step over that of the loop by hand in the same round."""
    whole: float
    """Processor time of a job's steps and what is spent once, over the same of the loop by hand."""


def difference(found: Path, reference: Path) -> float:
    """Norm of the difference of the weights in two files over the norm of their change in the second."""
    from safetensors.torch import load_file

    mine, theirs = load_file(found), load_file(reference)
    names = [name.removeprefix("after/") for name in theirs if name.startswith("after/")]
    apart = sum(float((mine[f"after/{name}"] - theirs[f"after/{name}"]).square().sum()) for name in names)
    moved = sum(float((theirs[f"after/{name}"] - theirs[f"before/{name}"]).square().sum()) for name in names)
    return (apart / moved) ** 0.5


def measured(case: Case, ways: dict[str, list[Path]], steps: int, rounds: int, home: Path) -> list[Row]:
    """All ways of one case in turn, ``steps`` at a time. Raises ``Failed`` where weights differ."""
    folder = Path(tempfile.mkdtemp(dir=home))
    turns: dict[str, list[dict[str, float]]] = {}
    errors, once = {}, {}
    with ExitStack() as stack:
        workers = {}
        for number, (way, path) in enumerate(ways.items()):
            config = {
                **asdict(case),
                "way": way,
                "total": FIRST + rounds * steps,
                "folder": str(folder),
                "number": number,
            }
            environment = {"KDBENCH_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
            worker = Worker(
                HERE / "peers" / "training.py", config, path=[HERE.parent / "plugins", *path], environment=environment
            )
            workers[way] = worker
            stack.callback(worker.close)
        for number, (way, worker) in enumerate(workers.items()):
            once[way] = worker.ask(f"{FIRST} {folder / str(number)}.safetensors")["cpu"]
            errors[way] = difference(folder / f"{number}.safetensors", folder / "0.safetensors")
            if not errors[way] <= TOLERANCE:
                raise Failed(f"{case.name}, {way}: the weights are apart by {errors[way]:.2g} of their change")
            turns[way] = []
        order = list(workers)
        for number in range(rounds):
            for way in order[number % len(order) :] + order[: number % len(order)]:
                turns[way].append(workers[way].ask(str(steps)))
        for way, worker in workers.items():
            once[way] += worker.ask("end")["cpu"]

    def each(way: str, clock: str) -> list[float]:
        return [turn[clock] / steps for turn in turns[way]]

    found = []
    for way in ways:
        cpu, base = Spread.of(each(way, "cpu")), Spread.of(each(HAND, "cpu"))
        factor = Spread.of([mine / theirs for mine, theirs in zip(each(way, "cpu"), each(HAND, "cpu"), strict=True)])
        alone, theirs = once[way] - FIRST * cpu.median, once[HAND] - FIRST * base.median
        job = case.budget * base.median
        whole = (factor.median * job + alone) / (job + theirs)
        found.append(Row(case.name, way, errors[way], cpu, Spread.of(each(way, "wall")), alone, factor, whole))
    return found


def missed(rows: Sequence[Row]) -> list[str]:
    """Which goals kdbench misses, one sentence each."""
    ours = {row.case: row for row in rows if row.way == OURS}
    reasons = [
        f"{row.case}: {row.whole:.3f} of the processor time of the loop by hand, more than {ABOVE:g}"
        for row in ours.values()
        if row.whole > ABOVE
    ]
    for row in rows:
        if row.way in TRAINERS and row.whole <= ours[row.case].whole:
            reasons.append(
                f"{row.case}: {row.way} takes {row.whole:.2f}, kdbench {ours[row.case].whole:.2f} of the loop"
            )
    return reasons


def table(rows: Sequence[Row]) -> Table:
    """The rows for people; factors are over the loop by hand."""
    shown = Table(box=None, pad_edge=False)
    for name in (
        "case",
        "way",
        "CPU ms a step",
        "factor",
        "wall ms a step",
        "once, ms CPU",
        "factor of a job",
        "error",
    ):
        shown.add_column(name, justify="left" if name in ("case", "way") else "right")
    for row in rows:
        shown.add_row(
            *(row.case, row.way, row.cpu.show(1000), row.factor.show(), row.wall.show(1000)),
            *(f"{1000 * row.once:.0f}", f"{row.whole:.3f}", f"{row.error:.0e}"),
        )
    return shown


def main(
    case: Annotated[list[str] | None, typer.Option(help="Cases whose names begin so.  [default: all]")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each way in a round.")] = 10,
    rounds: Rounds = 40,
    peers: Peers = True,
    peer_folder: PeerFolder = None,
    check: Check = False,
    json_file: Json = None,
) -> None:
    """Measure a step of distillation beside a loop written by hand and the trainers of others."""
    around, rows = Surroundings(), []
    chosen = [one for one in CASES if not case or any(one.name.startswith(name) for name in case)]
    if not chosen:
        print(f"error: no such case; there are {', '.join(one.name for one in CASES)}", file=sys.stderr)
        raise typer.Exit(2)
    try:
        with ExitStack() as stack:
            at = stack.enter_context(packages(list(NEEDS.values()) if peers else [], peer_folder))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdbench-training-")))
            for one in chosen:
                own = [way for way in one.ways if peers or way in (HAND, OURS)]
                ways = {way: [at[NEEDS[way]]] if way in NEEDS else [] for way in own}
                rows += measured(one, ways, steps, rounds, folder)
                print(f"{one.name}: measured", file=sys.stderr)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    where = around.end()
    what: dict[str, Any] = {"machine": where, "steps": steps, "rounds": rounds, "rows": [asdict(row) for row in rows]}
    lines = [where, f"{rounds} rounds of {steps} steps, one thread; median (least-most)"]
    finish(table(rows), what, missed(rows), lines=lines, path=json_file, check=check)


if __name__ == "__main__":
    typer.run(main)
