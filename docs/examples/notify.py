"""An extension: a suite that is found by name, and a file that grows by a line with every job that fails."""

from pathlib import Path

from kdbench import hookimpl


@hookimpl
def kdbench_suites():
    return {"annealed": Path(__file__).with_name("annealed.yaml")}


@hookimpl
def kdbench_job_finished(run, outcome):
    if outcome.status != "ok":
        with (run.results / "failures.txt").open("a") as file:
            file.write(f"{outcome.job.label} on {outcome.job.task}, seed {outcome.job.seed}: {outcome.status}\n")
