"""The task and the suite of this package."""

from pathlib import Path

from kdbench import hookimpl

DATA = Path(__file__).with_name("data")


@hookimpl
def kdbench_tasks():
    return [DATA / "tasks.yaml"]


@hookimpl
def kdbench_suites():
    return {"matching": DATA / "matching.yaml"}
