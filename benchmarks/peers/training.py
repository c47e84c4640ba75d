"""One way to train by distillation, in a process of its own that makes steps when its parent says so (``turns.py``).

``python training.py '{"pair": "image_pair", "way": "kdbench", "teacher": "live", "total": 100, ...}'``
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import torch
from turns import Turns

from kdbench.registry import discover
from kdbench.worker import named, repeatable


def warm() -> None:
    """Import what torch imports at the first step of an optimizer, so that nobody's first step is charged for it."""
    network = torch.nn.Linear(1, 1)
    network(torch.ones(1, 1)).sum().backward()
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        kind(network.parameters(), lr=0.0).step()


def main() -> None:
    """Make the task, and train in one way."""
    config = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    pair = import_module(config["pair"])
    registry = discover()
    spec = registry.task(pair.TASK, "cpu", overrides=pair.overrides(config), limits={"steps": config["total"]})
    folder = Path(config["folder"]) / f"{config['number']}"
    folder.mkdir()
    task = named(registry.tracks[spec.track].task)(spec, seed=0, method=f"{spec.track}/kd", folder=folder)
    warm()
    turns = Turns(task.student())
    # what the process of a job sets is part of what kdbench costs
    if config["way"] == "kdbench":
        torch.utils.deterministic.fill_uninitialized_memory = False
    with repeatable() if config["way"] == "kdbench" else nullcontext():
        pair.train(config["way"], task, turns, config)
        turns.answer()


if __name__ == "__main__":
    main()
