"""Fixtures shared by all tests: a cache and a home of their own, one thread, no hub."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the larger checks (minutes)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    left_out = [item for item in items if "full" in item.keywords]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if "full" not in item.keywords]


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the session, shared by all its test processes: smoke teachers are trained once.

    Also moves every per-user folder out of the way of the user's own.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "kdbench-cache"
    root.mkdir(exist_ok=True)
    os.environ["KDBENCH_CACHE"] = str(root)
    os.environ["KDBENCH_PLUGINS"] = ""  # no drop-in folder
    return root


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Results depend on the number of threads; jobs on CPUs use one, and so do tests."""
    import torch

    torch.set_num_threads(1)
