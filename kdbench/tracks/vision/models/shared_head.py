"""A student behind a projector and a classifier that is its teacher's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.tracks.vision.models import build
from kdbench.tracks.vision.models.base import Classifier, Taps
from kdbench.training.projectors import projector


class SharedHead(Classifier):
    """Backbone of ``arch``, a projector to ``width`` features, and a linear classifier of those.

    The backbone has no classifier of its own. ``taps(x).penult`` are the projected features.
    """

    kind = "shared_head"

    def __init__(
        self,
        arch: str,
        width: int,
        projection: Literal["linear", "mlp"] = "linear",
        *,
        num_classes: int,
        size: int = 16,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.config = {"arch": arch, "width": width, "projection": projection, "num_classes": num_classes, "size": size}
        self.backbone = build(arch, num_classes, size)
        own = self.backbone.head()
        self._own = next(name for name, module in self.backbone.named_modules() if module is own)
        self.backbone.set_submodule(self._own, nn.Identity())
        self.projector = projector(projection, own.in_features, width)
        self.classifier = nn.Linear(width, num_classes)

    def head(self) -> nn.Linear:
        return self.classifier

    def start_from(self, student: Classifier) -> None:
        """Take the weights of a network of ``arch``, except those of its classifier."""
        weights = student.state_dict()
        self.backbone.load_state_dict({k: v for k, v in weights.items() if not k.startswith(f"{self._own}.")})

    def share(self, teacher: nn.Linear) -> None:
        """Copy a classifier of ``width`` features and freeze the copy."""
        self.classifier.load_state_dict(teacher.state_dict())
        self.classifier.requires_grad_(False)

    def taps(self, x: Tensor) -> Taps:
        inner = self.backbone.taps(x)
        projected = self.projector(inner.penult)
        return Taps(inner.stages, projected, self.classifier(projected), inner.cls)

    def twin_taps(self, x: Tensor, stage: int, change: Callable[[Tensor], Tensor]) -> Taps:
        """Taps of 2B rows: of the images (B, 3, P, P), then of the same with the output of a stage changed.

        ``stage`` counts from 1; ``change`` maps its output (B, C, H, W) to the same shape. From there on both halves
        are one batch, so that normalisation statistics are of both and updated once; ``stages`` up to this one have
        B rows. Raises ``UsageError`` for a backbone without feature maps.
        """
        stages = getattr(self.backbone, "stages", None)
        if stages is None:
            raise UsageError(f"{self.config['arch']} has no feature maps to change; expected a residual network")
        if not 1 <= stage <= len(stages):
            raise UsageError(f"stage {stage} does not exist; {self.config['arch']} has the stages 1 to {len(stages)}")
        hook = stages[stage - 1].register_forward_hook(lambda module, args, out: torch.cat([out, change(out)]))
        try:
            return self.taps(x)
        finally:
            hook.remove()
