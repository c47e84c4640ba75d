"""Trained networks in files that other programs read, and back."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from kdbench.errors import ArtifactError
from kdbench.tracks.vision import data
from kdbench.tracks.vision.models import FAMILIES, KINDS, build, family, rebuild
from kdbench.tracks.vision.models.hf import HFClassifier

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save(model: nn.Module, folder: Path, classes: int, size: int) -> None:
    """Write a network for images of ``size`` pixels: a transformers folder for its networks, else two files."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, HFClassifier):
        model.save_pretrained(folder)
        return
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    config = {
        "arch": getattr(model, "arch", None),
        "kind": getattr(model, "kind", None),
        "config": getattr(model, "config", None),
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "num_classes": classes,
        "size": size,
        "mean": data.MEAN,
        "std": data.STD,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def load(folder: Path, classes: int) -> nn.Module:
    """The saved network, on the CPU. Raises ``ArtifactError`` for classes that only their method can build."""
    config = json.loads((folder / CONFIG).read_text())
    arch = config.get("arch")
    if "architectures" in config:
        return HFClassifier.open(str(folder), classes, pretrained=True)
    model: nn.Module
    if config.get("kind") in KINDS:
        model = rebuild(config["kind"], config["config"])
    elif arch is not None and family(arch) in FAMILIES:
        model = build(arch, config["num_classes"], config["size"])
    else:
        raise ArtifactError(f"{folder} holds the weights of a {config['class']}, which the track cannot build")
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model
