"""Idle: returns the untrained student, after a while if it is asked to."""

import time

from kdbench import Baseline, Field, Params, hookimpl

BASELINE = Baseline(slug="idle", title="Do nothing", track="noop", tasks=["*"])

BEAT = 0.1
"""Seconds between two logged steps."""


class IdleParams(Params):
    """What tells jobs apart, and how long they take."""

    variant: int = Field(0, ge=0, description="Changes nothing but the job's identity.")
    seconds: float = Field(0.0, ge=0, description="Time to sleep in train, with a logged step ten times a second.")


@hookimpl
def train(task, params):
    student = task.student()
    for step in range(1, round(params.seconds / BEAT) + 1):
        time.sleep(BEAT)
        task.log(step, loss=1 / step)
    return student
