"""Calibration: a board about this track says something where the student solves some problems and the teacher more.

Measured on validation problems with sampled responses: the student's pass@1 in each family, its pass@8, how many
problems it never solves, the teacher's pass@1, and what a reference solution or a critique of its own wrong attempt
does for the student. Where a context changes nothing, methods that condition the model on one cannot work.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from kdbench.tracks.reasoning_rl.data import contexts
from kdbench.tracks.reasoning_rl.data.problems import Problem
from kdbench.tracks.reasoning_rl.evaluation import pass_at_k
from kdbench.tracks.reasoning_rl.spec import Calibration

if TYPE_CHECKING:
    from pathlib import Path

    from kdbench.tracks.reasoning_rl.task import ReasoningTask


def measured(task: ReasoningTask) -> dict[str, float]:
    """Values by name, from the cache or measured now with random numbers of their own."""
    wanted = task.spec.gate
    assert wanted is not None

    def make(folder: Path) -> None:
        values = measure(task, wanted)
        (folder / "gap.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")

    folder = task.cache.get("gap", task.spec.gap_key(), make)
    values: dict[str, float] = json.loads((folder / "gap.json").read_text())
    return values


def measure(task: ReasoningTask, wanted: Calibration) -> dict[str, float]:
    """See the module; nothing is metered."""
    problems = task.problems("val")[: wanted.problems]
    generator = torch.Generator().manual_seed(0)
    common: dict[str, Any] = {"generator": generator, "metered": False}
    student, teacher = task.checkpoint("student_sft"), task.teacher()
    plain = task.accuracy(student, problems, samples=wanted.samples, **common)
    values = {
        "student": float(plain.mean()),
        "explore": float((pass_at_k(plain, 8) - plain.mean(axis=1)).mean()),
        "hard": float((plain.max(axis=1) == 0).mean()),
        "teacher": float(task.accuracy(teacher, problems, samples=wanted.samples, **common).mean()),
    }
    for family in sorted({problem.family for problem in problems}):
        rows = [i for i, problem in enumerate(problems) if problem.family == family]
        values[f"student/{family}"] = float(plain[rows].mean())
    behind = [task.with_reference(problem) for problem in problems]
    values["with_reference"] = float(task.accuracy(student, problems, prompts=behind, **common).mean())
    values |= critique(task, student, problems, common)
    return values


def critique(task: ReasoningTask, student: Any, problems: list[Problem], common: dict[str, Any]) -> dict[str, float]:
    """How often problems are solved behind the critique of a wrong attempt at them, and how often plainly."""
    tried = task.rollouts(student, problems, group=2, temperature=1.0, **common)
    wrong = (~tried.correct).nonzero()[:, 0].tolist()
    if not wrong:
        return {}
    asked, texts = [tried.problems[i] for i in wrong], task.decode([tried.responses[i] for i in wrong])
    told = [
        contexts.with_critique(problem, text, tried.verdicts[i].feedback)
        for problem, text, i in zip(asked, texts, wrong, strict=True)
    ]
    return {
        "with_critique": float(task.accuracy(student, asked, prompts=told, **common).mean()),
        "without_critique": float(task.accuracy(student, asked, **common).mean()),
    }


def reasons(values: dict[str, float], wanted: Calibration) -> list[str]:
    """Why checkpoints with these values are not what a board needs, one sentence each.

    >>> reasons({"student": 0.4, "teacher": 0.5, "explore": 0.3, "hard": 0.2, "with_reference": 0.9}, Calibration())
    ["the teacher's pass@1 is 0.500 and the student's 0.400: a gap of 0.100, less than 0.2"]
    """
    found = []
    student = values["student"]
    if wanted.student is not None:
        low, high = wanted.student
        for name, value in sorted(values.items()):
            if name.startswith("student/") and not low <= value <= high:
                found.append(f"the student's pass@1 in {name[8:]} is {value:.3f}, not between {low:g} and {high:g}")
    if wanted.explore is not None and values["explore"] < wanted.explore:
        found.append(f"the student's pass@8 is {values['explore']:.3f} above its pass@1, less than {wanted.explore:g}")
    if wanted.hard is not None and values["hard"] < wanted.hard:
        found.append(f"the student never solves {values['hard']:.3f} of the problems, less than {wanted.hard:g}")
    if wanted.teacher is not None and values["teacher"] - student < wanted.teacher:
        found.append(
            f"the teacher's pass@1 is {values['teacher']:.3f} and the student's {student:.3f}: "
            f"a gap of {values['teacher'] - student:.3f}, less than {wanted.teacher:g}"
        )
    if wanted.reference is not None and values["with_reference"] - student < wanted.reference:
        found.append(
            f"behind a reference the student's pass@1 is {values['with_reference']:.3f}, plainly {student:.3f}: "
            f"it gains less than {wanted.reference:g}"
        )
    told, plain = values.get("with_critique"), values.get("without_critique")
    if wanted.critique is not None and told is not None and plain is not None and told - plain < wanted.critique:
        found.append(
            f"behind a critique of a wrong attempt the student solves {told:.3f}, plainly {plain:.3f}: "
            f"it gains less than {wanted.critique:g}"
        )
    return found
