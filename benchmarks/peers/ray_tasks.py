"""Ray's side of the comparison: seconds that tasks take which return at once, on a local cluster of this process.

Run by ``benchmarks/scheduler.py``; prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import ray


def shared() -> int:
    """A task in a worker process that serves many tasks."""
    return 0


def isolated() -> int:
    """A task in a process of its own that has torch, as the job of a training method needs it."""
    import torch

    return int(torch.zeros(1).item())


def seconds(task: ray.remote_function.RemoteFunction, count: int) -> float:
    """Wall-clock seconds of ``count`` tasks, after one that is not counted."""
    ray.get(task.remote())
    started = time.perf_counter()
    ray.get([task.remote() for _ in range(count)])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=int, default=1000, help="tasks in a shared process")
    parser.add_argument("--isolated", type=int, default=20, help="tasks in processes of their own")
    parser.add_argument("--workers", type=int, default=1, help="tasks at once")
    options = parser.parse_args()
    started = time.perf_counter()
    ray.init(num_cpus=options.workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        measured = {
            "startup_seconds": time.perf_counter() - started,
            "shared_seconds": seconds(ray.remote(shared), options.shared) / options.shared,
            "isolated_seconds": seconds(ray.remote(max_calls=1)(isolated), options.isolated) / options.isolated,
        }
    finally:
        ray.shutdown()
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
