"""Is a task informative? Steps must matter to the teacher, and distillation to the student; on validation data."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.tracks.diffusion.blocks.denoising import denoising_loss
from kdbench.tracks.diffusion.samplers.fewstep import one_step
from kdbench.tracks.diffusion.samplers.solvers import Solver
from kdbench.tracks.diffusion.spec import DiffusionSpec

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


def measured(task: DiffusionTask) -> dict[str, float]:
    """The headline of the teacher (``teacher``), of the same at few steps (``teacher_1``, ...), of its weights
    called once (``naive``), and of a student from scratch trained as a denoiser (``small``). Once per task, cached."""
    spec = task.spec

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            probe = type(task)(
                spec, seed=0, method="small_scratch", folder=Path(scratch), cache=task.cache, device=task.device
            )
            headline, steps = spec.headline.name, spec.evaluation.teacher_steps
            values = {"teacher": probe.validate(probe.official_teacher())[headline]}
            for count in spec.gate.at if spec.gate is not None else ():
                values[f"teacher_{count}"] = probe.validate(probe.official_teacher(count))[headline]
            values["naive"] = probe.validate(one_step(probe.teacher(), probe.sigma_init))[headline]
            if spec.student.init == "scratch":
                student, generator = probe.student(), probe.generator("denoising")
                fitted = probe.fit(
                    student,
                    lambda model, batch: denoising_loss(model, batch.x, batch.cond, generator, dropout=0.1),
                    ema=0.99,
                )
                sampler = Solver(fitted.ema, probe.process.grid(steps).tolist(), guidance=spec.guidance)
                values["small"] = probe.validate(sampler)[headline]
        (folder / "gap.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")

    path = task.cache.get("gap", spec.gap_key(), make)
    values: dict[str, float] = json.loads((path / "gap.json").read_text())
    return values


def problems(values: dict[str, float], spec: DiffusionSpec) -> list[str]:
    """Why the task says nothing about distillation, one sentence each; empty where it does."""
    wanted = spec.gate
    if wanted is None:
        return []
    name, reasons = spec.headline.name, []
    asked = [(f"teacher_{count}", wanted.steps, f"the teacher at {count} steps") for count in wanted.at]
    asked += [("naive", wanted.naive, "the teacher's weights called once")]
    asked += [("small", wanted.small, "a student that is trained as a denoiser")]
    for key, factor, who in asked:
        if factor is None or key not in values:
            continue
        good, bad = values["teacher"], values[key]
        worse = bad >= factor * good if spec.headline.direction == "min" else good >= factor * bad
        if not worse:
            reasons.append(
                f"{name} of {who} is {bad:.3g}, that of the teacher {good:.3g}: not {factor:g} times as good"
            )
    return reasons
