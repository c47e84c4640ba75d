"""Denoisers from their specification, to files and back: ``model.safetensors`` and ``denoiser.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import nn

from kdbench.errors import ArtifactError, UsageError
from kdbench.tracks.diffusion.networks import lora
from kdbench.tracks.diffusion.networks.base import WRAPPERS, Denoiser, NetDenoiser
from kdbench.tracks.diffusion.networks.dit import SmallDit
from kdbench.tracks.diffusion.networks.mlp import ResidualMlp
from kdbench.tracks.diffusion.networks.unet import SmallUNet
from kdbench.tracks.diffusion.processes import Process, process_from
from kdbench.tracks.diffusion.spec import Dit, Mlp, Net, UNet

RAW: dict[str, Any] = {"mlp": ResidualMlp, "unet": SmallUNet, "dit": SmallDit}
"""Classes of raw networks by the kind of their specification."""

WEIGHTS, CONFIG = "model.safetensors", "denoiser.json"


def build(
    spec: Mlp | UNet | Dit,
    shape: Sequence[int],
    vocabulary: Sequence[int] = (),
    image_channels: int = 0,
    process: Process | None = None,
    *,
    numbers: int = 1,
    around: bool = False,
) -> NetDenoiser:
    """An untrained denoiser, initialised from the global generators; its raw network gives 0 at first.

    ``vocabulary``: tokens of each slot of a prompt, the null 0 included; empty: no condition. ``image_channels``: of
    the condition's image, 0 for none. ``process`` defaults to ``Edm``. ``numbers``: conditioning numbers that the raw
    network reads (:meth:`~kdbench.tracks.diffusion.networks.conditioning.Conditioning.add_number`). Raises
    ``UsageError`` where the network does not fit the shape. ``around``: it works on the difference to the condition's
    image (``Edm`` alone), whose standard deviation is that of the process then.
    """
    process = process_from({"name": "edm"}) if process is None else process
    net = RAW[spec.kind](spec, tuple(shape), tuple(vocabulary), image_channels, numbers)
    if around and (process.name != "edm" or image_channels != shape[0]):
        raise UsageError("only denoisers of the process 'edm' work around an image, one with the channels of a sample")
    model = WRAPPERS[process.name](net, process, tuple(shape))
    model.around = around
    model.recipe = {  # type: ignore[assignment]
        "spec": spec.model_dump(mode="json"),
        "shape": list(shape),
        "vocabulary": list(vocabulary),
        "image_channels": image_channels,
        "process": process.state(),
        "around": around,
    }
    return model


def save_denoiser(model: Denoiser, folder: Path) -> None:
    """Write a denoiser that :func:`build` made, with its adapters where it has some; others write themselves.

    Classes of denoisers that are not built from a specification have ``save(folder)`` and a classmethod
    ``load(folder)``. Raises ``ArtifactError`` for those that have not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe: dict[str, Any] | None = getattr(model, "recipe", None)
    if recipe is None:
        writer = getattr(model, "save", None)
        name = f"{type(model).__module__}:{type(model).__qualname__}"
        if writer is None or not hasattr(model, "load"):
            raise ArtifactError(f"{name} was not made by build(...) and has no save(folder) and load(folder)")
        writer(folder)
        (folder / CONFIG).write_text(json.dumps({"class": name}) + "\n")
        return
    numbers = model.net.conditioning.numbers  # type: ignore[union-attr]
    config = {**recipe, "numbers": numbers, "adapters": lora.describe(model), "used": lora.used(model)}
    save_weights(model, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def load_denoiser(folder: Path) -> Denoiser:
    """Read what :func:`save_denoiser` wrote, on the CPU. Raises ``ArtifactError`` for a class that is not known."""
    config = json.loads((folder / CONFIG).read_text())
    if "class" in config:
        return known_class(config["class"]).load(folder)  # type: ignore[no-any-return, attr-defined]
    spec: Mlp | UNet | Dit = TypeAdapter(Net).validate_python(config["spec"])
    model = build(
        spec,
        config["shape"],
        config["vocabulary"],
        config["image_channels"],
        process_from(config["process"]),
        numbers=config["numbers"],
        around=config["around"],
    )
    lora.restore(model, config["adapters"])
    lora.set_used(model, config["used"])
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model


def save_weights(model: nn.Module, file: Path) -> None:
    """Weights and buffers as safetensors. Raises ``ArtifactError`` while adapters are merged into the weights."""
    if any(layer.merged for layer in lora.layers(model).values()):
        raise ArtifactError("adapters are merged into the weights: unmerge() them, or remove() them for good, first")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, file)


def known_class(name: str) -> type[Denoiser]:
    """``module:class`` of kdbench or of an imported plugin; nothing else is imported for a file's sake."""
    module, _, attribute = name.partition(":")
    if not module.startswith(("kdbench.", "kdbench_methods.")):
        raise ArtifactError(f"{name} is not a denoiser of kdbench")
    found = getattr(import_module(module), attribute, None)
    if not (isinstance(found, type) and issubclass(found, Denoiser)):
        raise ArtifactError(f"there is no denoiser {name}")
    return found
