"""Building, saving and loading mask predictors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from kdbench.tracks.dllm.data import vocabulary
from kdbench.tracks.dllm.networks.transformer import Shape, Transformer, load_transformer, save_transformer
from kdbench.tracks.dllm.spec import DllmSpec, Hub, Trained


def new_transformer(spec: DllmSpec, *, causal: bool = False) -> Transformer:
    """An untrained network for a task of generated problems, initialised from the global generators."""
    assert isinstance(spec.teacher, Trained)
    positions = spec.data.prompt + spec.data.length
    shape = Shape(spec.teacher.network, positions, vocabulary.SIZE, vocabulary.MASK, vocabulary.EOS, causal)
    return Transformer(shape)


def save_network(net: Any, folder: Path) -> None:
    """Write a network; models of the hub as transformers does, adapters merged into the weights."""
    if isinstance(net, Transformer):
        save_transformer(net, folder)
        return
    from kdbench.tracks.decoding.decoders.base import save_network as save_hub

    save_hub(net.model, folder)
    facts = {"mask": net.mask, "eos": net.eos, "shift": net.shift}
    (folder / "predictor.json").write_text(json.dumps(facts) + "\n")


def load_network(folder: Path, spec: DllmSpec) -> nn.Module:
    """Read what :func:`save_network` wrote."""
    if not (folder / "predictor.json").exists():
        return load_transformer(folder)
    from kdbench.tracks.dllm.networks.hub import HubPredictor, load_hub

    assert isinstance(spec.teacher, Hub)
    model = load_hub(spec.teacher.model_copy(update={"name": str(folder)}), device="cpu", trainable=False)
    return HubPredictor(model, **json.loads((folder / "predictor.json").read_text()))
