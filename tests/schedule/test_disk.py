"""A disk that gets full, really: a small file system in memory, mounted in a namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.store import spool
from tests.helpers.scenes import ROOT, kept

FILLS = """
@hookimpl
def train(task, params):
    with traced(task):
        if not os.path.exists(os.environ["TRACE"] + "-go"):
            with open(task.artifact("large"), "wb", buffering=0) as file:
                for size in (1 << 16, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
        return trained(task)
"""
"""Takes all that the disk has before it trains, unless :meth:`Scene.let_go` was called."""


class Disk:
    """A file system of its own at a folder, for the commands that are run through :attr:`prefix`."""

    def __init__(self, folder: Path, size: str) -> None:
        folder.mkdir()
        self.folder = folder
        mount = f"mount -t tmpfs -o size={size} tmpfs {folder} && echo mounted && exec cat"
        self.holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.holder.stdout is not None
        self.mounted = self.holder.stdout.readline() == b"mounted\n"
        pid = str(self.holder.pid)
        self.prefix = ["nsenter", "-t", pid, "-U", "-m", "--preserve-credentials", "--"]
        self.seen = Path(f"/proc/{pid}/root{folder}")
        """The folder from outside."""

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.seen).free

    def fill(self, leave: int = 0) -> Path:
        """Take all but ``leave`` bytes; returns the file that does."""
        path = self.seen / "filler"
        with path.open("wb", buffering=0) as file:
            while self.free > leave:
                file.write(bytes(min(4096, self.free - leave)))
        return path

    def close(self) -> None:
        assert self.holder.stdin is not None
        self.holder.communicate()


@pytest.fixture
def disk(tmp_path):
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("unshare and nsenter of util-linux are needed to mount a small file system")
    made = Disk(tmp_path / "disk", "24m")
    if not made.mounted:
        made.close()
        pytest.skip("this system does not let its users mount a file system in a namespace of their own")
    yield made
    made.close()


def require_finished(here, disk, jobs):
    """As :meth:`Scene.require_finished`, where the file system is seen."""
    results, here.results = here.results, disk.seen / "r"
    here.require_finished(jobs, stores=False)
    program = (
        "import sys; from pathlib import Path; from tests.helpers.scenes import require_stores_agree; "
        "require_stores_agree(Path(sys.argv[1]))"
    )
    subprocess.run([*disk.prefix, sys.executable, "-c", program, str(results)], cwd=ROOT, check=True)


def test_a_full_disk_is_said_before_anything_runs(scene, disk):
    here = scene("quick", results=disk.folder / "r")
    disk.fill()
    said = here.run(prefix=disk.prefix)
    assert said.code == 2, said.text
    assert "No space left on device" in said.text
    assert "Traceback" not in said.text
    assert here.traced("begin") == []


def test_a_job_that_fills_the_disk_ends_the_run_with_a_message_and_costs_no_outcome(scene, disk):
    here = scene("quick", "fills", seeds=3, bodies={"fills": FILLS}, results=disk.folder / "r")
    first = here.run(prefix=disk.prefix)
    assert first.code == 2, first.text
    assert "results cannot be written any more: No space left on device" in first.text
    assert "the same command goes on from there" in first.text
    assert "Traceback" not in first.text
    before = spool.stamps(disk.seen / "r")
    assert all(spool.read_outcome(spool.job_folder(disk.seen / "r", id)) for id in before), "what is there is whole"
    here.require_quiet()
    assert disk.free > 0, "what the interrupted job wrote is gone"

    here.let_go()
    again = here.run(prefix=disk.prefix)
    assert again.code == 0, again.text
    assert not kept(before, spool.stamps(disk.seen / "r"))
    require_finished(here, disk, jobs=6)


def test_a_disk_that_is_full_when_the_stores_are_written_costs_no_outcome(scene, disk):
    here = scene("quick", "waits", seeds=1, results=disk.folder / "r")
    first = here.start(name="first", prefix=disk.prefix)
    first.until(lambda: len(spool.stamps(disk.seen / "r")) == 1, "one job is done")
    filler = disk.fill(leave=256 << 10)  # room for an outcome, not for a database
    here.let_go()
    assert first.end() == 0, first.text
    assert "Traceback" not in first.text
    assert "No space left on device" in first.text
    before = spool.stamps(disk.seen / "r")
    assert len(before) == 2, "both jobs have their outcomes"

    filler.unlink()
    again = here.run(prefix=disk.prefix)
    assert again.code == 0, again.text
    assert spool.stamps(disk.seen / "r") == before, "nothing is done again"
    require_finished(here, disk, jobs=2)
