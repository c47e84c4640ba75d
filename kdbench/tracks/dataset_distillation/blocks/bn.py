"""How far a batch is from the data that a network was trained on, by the statistics of its batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def layer_distance(x: Tensor, mean: Tensor, var: Tensor, groups: int = 1) -> Tensor:
    """||var - batch_var||_2 + ||mean - batch_mean||_2 for the input (B, C, H, W) of a layer, a scalar.

    The batch variance is the biased one, as in DeepInversion (Yin et al., CVPR 2020, equation 4) and its followers.
    ``groups``: that many batches of equal size lie one after another; the distances of all are summed.
    """
    x = x.unflatten(0, (groups, -1))
    axes = [1, *range(3, x.dim())]
    batch_mean, batch_var = x.mean(axes), x.var(axes, unbiased=False)
    return ((var - batch_var).norm(2, dim=1) + (mean - batch_mean).norm(2, dim=1)).sum()


def with_statistics(model: nn.Module, x: Tensor, groups: int = 1) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, K) of images, and the distance of each layer of batch normalisation, from the first to the last.

    The model has to be in evaluation mode: it normalises by its running statistics, and the distances are of the
    *input* of each layer to these. ``groups`` as of :func:`layer_distance`. Raises ``ValueError`` in training mode, or
    without such a layer.
    """
    if model.training:
        raise ValueError("statistics are matched with a network in evaluation mode")
    distances: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        distances.append(layer_distance(inputs[0], layer.running_mean, layer.running_var, groups))

    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no batch normalisation, whose statistics could be matched")
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        return model(x), distances
    finally:
        for handle in handles:
            handle.remove()


def bn_loss(distances: Sequence[Tensor], first: float = 10.0) -> Tensor:
    """Sum over the layers, the first one times ``first``."""
    total = first * distances[0]
    for distance in distances[1:]:
        total = total + distance
    return total
