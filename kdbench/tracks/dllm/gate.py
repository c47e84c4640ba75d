"""Is a task informative? The teacher must solve it one token at a time, and could write several; on validation data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.tracks.dllm.decoders.oracle import OracleDecoder
from kdbench.tracks.dllm.spec import DllmSpec

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask


def measured(task: DllmTask) -> dict[str, float]:
    """``accuracy`` of one token per step on problems with one solution (null where there are none), by operation
    ``accuracy/copy``, ..., and ``speedup``: its forwards over those of the oracle. Once per task, cached."""

    def make(folder: Path) -> None:
        spent = dict(task.budget.spent)
        split, written = task.split("val"), task.reference("val")
        correct = task.correct("val", written.tokens).cpu()
        oracle = task.decode(OracleDecoder(task.teacher()), split.prompts, double=task.spec.evaluation.double)
        values = {"speedup": float(written.forwards.sum()) / float(oracle.forwards.sum())}
        operation, single = split.operation.cpu(), ~task.kind.coupled(split).cpu()
        if single.any():
            values["accuracy"] = float(correct[single].double().mean())
        for number, name in enumerate(split.names):
            if (operation == number).any():
                values[f"accuracy/{name}"] = float(correct[operation == number].double().mean())
        task.budget.restore(spent)
        (folder / "gap.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")

    path = task.cache.get("gap", task.spec.gap_key(), make)
    values: dict[str, float] = json.loads((path / "gap.json").read_text())
    return values


def problems(values: dict[str, float], spec: DllmSpec) -> list[str]:
    """Why the task says nothing about parallel decoding, one sentence each; empty where it does."""
    wanted, reasons = spec.gate, []
    if wanted is None:
        return []
    accuracy = values.get("accuracy")
    if wanted.accuracy is not None and accuracy is not None and accuracy < wanted.accuracy:
        reasons.append(
            f"one token per step the teacher solves {accuracy:.3f} of the problems with one solution, "
            f"less than {wanted.accuracy:g}"
        )
    if wanted.speedup is not None and values["speedup"] < wanted.speedup:
        reasons.append(
            f"the oracle takes 1/{values['speedup']:.2f} of the forwards of one token per step, "
            f"not 1/{wanted.speedup:g} or less: nothing can be written in parallel"
        )
    return reasons
