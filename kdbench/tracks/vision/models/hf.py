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
PROCESSOR = "preprocessor_config.json"


def _last_linear(network: nn.Module, classes: int) -> nn.Linear:
    """The layer that makes the logits. Raises ``UsageError`` where the network has none."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not layers:
        raise UsageError(f"{type(network).__name__} has no linear layer with {classes} outputs")
    return layers[-1]


def _processor(name: str, config: Any, *, pretrained: bool) -> dict[str, Any]:
    """How a network's images are normalised: ``preprocessor_config.json``, or the configuration where it is timm's.

    A folder need not have the file, and fresh weights from the hub do without: their images are normalised as the
    track's. Raises ``UsageError`` for pretrained weights of the hub of which nothing says how.
    """
    from transformers.utils import cached_file

    if Path(name).is_dir():
        file = Path(name) / PROCESSOR
        return json.loads(file.read_text()) if file.is_file() else {}
    own = getattr(config, "pretrained_cfg", None)
    if own:
        return {"image_mean": own["mean"], "image_std": own["std"]}
    if not pretrained:
        return {}
    try:
        return json.loads(Path(cached_file(name, PROCESSOR)).read_text())
    except OSError as error:
        message = f"hf:{name} comes without {PROCESSOR}, which says how its images are normalised: {error}"
        hint = "fetch the whole repository, or save the network with that file to a folder"
        raise UsageError(message, hint=hint) from error


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
        return cls(network, _processor(name, config, pretrained=pretrained))

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
            (folder / PROCESSOR).write_text(json.dumps(self.processor, indent=1) + "\n")
