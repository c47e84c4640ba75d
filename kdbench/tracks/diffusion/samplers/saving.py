"""Networks of samplers on disk: trained ones with their weights, teachers that no weights describe by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from kdbench.tracks.diffusion.networks.base import Denoiser, NetDenoiser

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


def save_network(network: nn.Module, folder: Path) -> None:
    """Write a denoiser. Exact and pretrained teachers belong to the task: only that they are one is written.

    Denoisers with ``save(folder)`` and ``load(folder)`` of their own write themselves.
    """
    from kdbench.tracks.diffusion.networks.build import save_denoiser

    folder.mkdir(parents=True, exist_ok=True)
    own = isinstance(network, NetDenoiser) or hasattr(network, "save")
    (folder / "source.json").write_text(json.dumps({"source": "weights" if own else "teacher"}) + "\n")
    if own:
        save_denoiser(network, folder)


def load_network(folder: Path, task: DiffusionTask) -> Denoiser:
    """Read what :func:`save_network` wrote, on the task's device and in evaluation mode."""
    from kdbench.tracks.diffusion.networks.build import load_denoiser

    if json.loads((folder / "source.json").read_text())["source"] == "teacher":
        teacher: Denoiser = task.teacher()
        return teacher
    network: Denoiser = task.place(load_denoiser(folder)).eval()
    return network
