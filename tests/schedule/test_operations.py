"""Whatever happens to a run at whichever of its file operations: the same run again finishes it, and nothing is lost.

The audit hook of the coordinator's process strikes before an operation on the results folder takes place. Jobs are
done by the executor ``here``, which costs nothing, so that hundreds of such moments take seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.helpers.scenes import PATIENCE, ROOT

SHARES = 2
"""Processes that share the moments."""
STEPS = {"kill": 2, "full": 3, "interrupt": 6, "insist": 6}
"""What happens (:data:`tests.helpers.operations.STRIKES`), and at every how manieth operation by default."""


@pytest.fixture(scope="module")
def found(tmp_path_factory, request):
    """What the processes say, by kind."""
    steps = dict.fromkeys(STEPS, 1) if request.config.getoption("--full") else STEPS
    kinds = [f"{kind}:{step}" for kind, step in steps.items()]
    processes = []
    for share in range(SHARES):
        folder = tmp_path_factory.mktemp("operations")
        command = [sys.executable, "-m", "tests.helpers.operations", str(folder), str(share), str(SHARES), *kinds]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    parts = [json.loads(process.communicate(timeout=5 * PATIENCE)[0]) for process in processes]
    return {kind: [part[kind] for part in parts] for kind in STEPS}


@pytest.mark.parametrize("kind", STEPS)
def test_the_same_run_again_finishes_it(kind, found):
    problems = [problem for part in found[kind] for problem in part["problems"]]
    assert not problems, "\n\n".join(problems[:3])
    operations = found[kind][0]["operations"]
    assert operations > 50
    turns = sum(part["turns"] for part in found[kind])
    assert turns >= operations // STEPS[kind]
    assert sum(part["missed"] for part in found[kind]) <= turns // 10
