"""Teachers: exact ones, trained ones from the cache, and networks that are fitted to exact ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdbench.tracks.diffusion.blocks.denoising import train
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.networks.build import build, load_denoiser, save_denoiser
from kdbench.tracks.diffusion.processes import Process, process_from
from kdbench.tracks.diffusion.spec import DiffusionSpec, Exact, Net, Trained

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.kinds.base import Kind
    from kdbench.tracks.diffusion.task import DiffusionTask


def process_of(spec: DiffusionSpec, kind: Kind) -> Process:
    """The task's process; that of EDM has the standard deviation of the data. Pretrained teachers bring theirs."""
    if kind.process is not None:
        return kind.process
    state = spec.process.model_dump()
    if spec.process.name == "edm":
        state["data_std"] = kind.data_std
    return process_from(state)


def new_network(spec: DiffusionSpec, kind: Kind, net: Net) -> Denoiser:
    """An untrained denoiser, initialised from the global generators."""
    process = process_of(spec, kind)
    return build(net, kind.shape, kind.vocabulary, kind.image_channels, process, around=kind.around)


def stored(task: DiffusionTask) -> Denoiser:
    """A trained teacher, or the network that is fitted to an exact one: from the cache, or trained now."""
    spec, kind = task.spec, task.kind
    teacher = spec.teacher
    assert isinstance(teacher, Exact | Trained)

    def make(folder: Path) -> None:
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.teacher_seed)
            model = new_network(spec, kind, teacher.network).to(task.device)
        target = kind.exact().to(task.device) if isinstance(teacher, Exact) else None
        train(model, teacher.training, kind.batches(), spec.teacher_seed, target=target)
        save_denoiser(model, folder)
        facts = {"seconds": round(time.perf_counter() - started, 1), "steps": teacher.training.steps}
        (folder / "training.json").write_text(json.dumps(facts) + "\n")

    return load_denoiser(task.cache.get("teacher", spec.teacher_identity(), make))
