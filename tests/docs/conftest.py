"""The documentation: its pages, its generators, and the site that they make."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from kdbench.registry import Registry
from tests.helpers.documents import DOCS, build, copied

if str(DOCS / "_ext") not in sys.path:
    sys.path.append(str(DOCS / "_ext"))


@pytest.fixture(scope="session")
def registry() -> Registry:
    """What the documentation is about: all that comes with kdbench, and nothing else."""
    from kdbench_docs.extension import own

    return own()


@pytest.fixture(scope="session")
def pages(registry: Registry) -> dict[str, str]:
    """The pages that people wrote, with everything generated in its place, by path without ending."""
    from kdbench_docs import reference

    written = [
        path for path in DOCS.rglob("*.md") if path.relative_to(DOCS).parts[0] not in ("_build", "methods", "_ext")
    ]
    return {
        path.relative_to(DOCS).with_suffix("").as_posix(): reference.expanded(path.read_text(), registry)
        for path in written
    }


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation, made once for all test processes; warnings are errors."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "documentation"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            source = shared.with_name("documentation-source")
            shutil.rmtree(source, ignore_errors=True)  # of a build that failed
            build(copied(source), shared)
    return shared
