"""Image classifiers of transformers behind the track's interface, from a ``save_pretrained`` folder or a hub name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.tracks.vision.models.base import Classifier, Taps

MEAN, STD = 0.45, 0.27  # what the track's images are normalised by


def _last_linear(network: nn.Module, classes: int) -> nn.Linear:
    """The layer that makes the logits. Raises ``UsageError`` where the network has none."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not layers:
        raise UsageError(f"{type(network).__name__} has no linear layer with {classes} outputs")
    return layers[-1]


def _processor(name: str) -> dict[str, Any]:
    """What ``preprocessor_config.json`` of a folder or a hub name says; nothing where there is none."""
    from transformers.utils import cached_file

    found = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    return {} if found is None else json.loads(Path(found).read_text())


class HFClassifier(Classifier):
    """A transformers image classifier fed with the track's images.

    Images are brought to the network's own normalisation (of ``preprocessor_config.json``, where there is one) and,
    where its configuration names another size, to that size by antialiased bilinear interpolation.
    """

    def __init__(self, network: Any, processor: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.processor = processor
        self.num_classes = int(network.config.num_labels)
        _last_linear(network, self.num_classes)  # raises now rather than at the first use
        size = getattr(network.config, "image_size", None)
        self.size = tuple(size) if isinstance(size, list | tuple) else (size, size) if size else None
        mean, std = processor.get("image_mean"), processor.get("image_std")
        normalise = bool(processor.get("do_normalize", True)) and mean is not None and std is not None
        self.register_buffer("mean", torch.tensor(mean if normalise else [MEAN] * 3).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std if normalise else [STD] * 3).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def open(cls, place: str, num_classes: int, *, pretrained: bool) -> HFClassifier:
        """Load from a folder or a hub name; without ``pretrained``, its configuration with fresh weights."""
        from transformers import AutoConfig, AutoModelForImageClassification

        folder = Path(place).expanduser()
        name = str(folder) if folder.exists() else place
        try:
            config = AutoConfig.from_pretrained(name)
            if pretrained:
                network = AutoModelForImageClassification.from_pretrained(name, dtype=torch.float32)
            else:
                config.num_labels = num_classes
                network = AutoModelForImageClassification.from_config(config)
        except (OSError, ValueError) as error:
            raise UsageError(f"no image classifier of transformers can be loaded from {place}: {error}") from error
        if network.config.num_labels != num_classes:
            raise UsageError(f"hf:{place} has {network.config.num_labels} classes, but the task has {num_classes}")
        return cls(network, _processor(name))

    def head(self) -> nn.Linear:
        return _last_linear(self.network, self.num_classes)

    def inputs(self, x: Tensor) -> Tensor:
        """The track's images (B, 3, P, P) as the network wants them."""
        x = (x * STD + MEAN - self.mean) / self.std
        if self.size is not None and tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.network(pixel_values=self.inputs(x)).logits

    def taps(self, x: Tensor) -> Taps:
        """Stages are the hidden states after the embedding; a class token, where there is one, is split off."""
        seen: list[Tensor] = []
        hook = self.head().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            out = self.network(pixel_values=self.inputs(x), output_hidden_states=True)
        finally:
            hook.remove()
        stages = list(out.hidden_states[1:])
        cls: list[Tensor] = []
        if stages and stages[0].dim() == 3 and self._has_cls():
            cls = [stage[:, 0] for stage in stages]
            stages = [stage[:, self._special() :] for stage in stages]
        return Taps(stages, seen[0].flatten(1), out.logits, cls)

    def _has_cls(self) -> bool:
        return any(name.endswith("cls_token") for name, _ in self.network.named_parameters())

    def _special(self) -> int:
        """Tokens before the patches: class token, and a distillation token where the network has one."""
        return 1 + any(name.endswith("distillation_token") for name, _ in self.network.named_parameters())

    def save_pretrained(self, folder: Path) -> None:
        """Write the network so that transformers and :meth:`open` read it."""
        self.network.save_pretrained(folder)
        if self.processor:
            (folder / "preprocessor_config.json").write_text(json.dumps(self.processor, indent=1) + "\n")
