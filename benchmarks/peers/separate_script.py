"""What an experiment costs that stands alone: it loads the data, trains its teacher, and asks it at every step.

``python separate_script.py JOBS FOLDER`` runs jobs of one method, one seed after the other, and prints one JSON object.
Training loop, losses and evaluation are kdbench's: what differs is that the teacher is this script's own and that its
outputs are not kept. ``KDBENCH_CACHE`` names a folder that has the data and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.job import Job
from kdbench.store import spool
from kdbench.tracks.vision.task import VisionTask
from kdbench.worker import make_task, run_job


@torch.no_grad()
def live(self: VisionTask, batch: Any, which: str = "default") -> Tensor:
    """(B, C) logits of the teacher, computed now."""
    return self.teacher(which)(batch.x).float()


def main() -> None:
    """Train the teacher, then a student for each job."""
    jobs = [Job.model_validate(job) for job in json.loads(Path(sys.argv[1]).read_text())]
    folder = Path(sys.argv[2])
    torch.set_num_threads(1)
    VisionTask.teacher_logits = live  # type: ignore[method-assign]
    task = make_task(jobs[0], folder, "cpu")
    started = time.process_time()
    task.load_teacher()
    teacher = time.process_time() - started
    scores = {}
    for job in jobs:
        outcome = run_job(job, folder / job.id)
        if outcome.status != "ok":
            raise SystemExit(f"{job.label}: {outcome.status}\n{(folder / job.id / spool.OUTCOME).read_text()}")
        scores[job.id] = outcome.headline
    print(json.dumps({"teacher": teacher, "scores": scores}))


if __name__ == "__main__":
    main()
