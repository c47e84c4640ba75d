"""Judges: small classifiers of images, trained once on real ones and kept in the cache.

One judge has one task. The evaluator, whose features Fréchet distances are taken of, is never lent to a method: papers
whose discriminators or rewards read features get another judge, of other seed, width and labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.cache import Cache
from kdbench.task import seed_of

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.data.specs import Judges

FEATURES = 64
NOISE = 0.1
"""Standard deviation of the noise on training images."""
RATE = 4e-3
"""Peak learning rate."""


class Judge(nn.Module):
    """Three convolutions, a layer of 64 features, and a linear head for each of several labels."""

    def __init__(self, channels: int, size: int, width: int, heads: Sequence[int]) -> None:
        """For images (B, channels, size, size); ``heads``: classes of each label."""
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.widths = widths
        """Channels of the maps."""
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=1 if number == 0 else 2, padding=1)
            for number, (before, after) in enumerate(zip((channels, *widths), widths, strict=False))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, after) for after in widths)
        self.penult = nn.Linear(widths[-1] * (-(-size // 4)) ** 2, FEATURES)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, classes) for classes in heads)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps (B, C, H, W) of three scales, the finest first."""
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
            found.append(x)
        return found

    def features(self, x: Tensor) -> Tensor:
        """(B, 64): what the heads read."""
        return F.silu(self.penult(self.maps(x)[-1].flatten(1)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits (B, classes) of each label."""
        features = self.features(x)
        return [head(features) for head in self.heads]


@torch.enable_grad()  # a judge may be asked for, and so trained, where gradients are off
def train(x: Tensor, labels: Tensor, heads: Sequence[int], spec: Judges, name: str, smoothing: float = 0.0) -> Judge:
    """A judge of images (N, C, S, S) with labels (N, L) int64, one column a head, by the sum of cross-entropies.

    First weights and batches are those of ``name``; ``smoothing`` of the labels keeps log-probabilities moderate.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("judge", name, "init"))
        model = Judge(x.shape[1], x.shape[-1], spec.width, heads)
    generator = torch.Generator().manual_seed(seed_of("judge", name, "data"))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=spec.steps + 1)
    for _ in range(spec.steps):
        rows = torch.randint(len(x), (spec.batch_size,), generator=generator)
        noisy = x[rows] + NOISE * torch.randn(spec.batch_size, *x.shape[1:], generator=generator)
        logits = model(noisy)
        loss = torch.stack(
            [F.cross_entropy(part, labels[rows, slot], label_smoothing=smoothing) for slot, part in enumerate(logits)]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False).eval()


def stored(
    cache: Cache,
    key: dict[str, Any],
    data: Callable[[], tuple[Tensor, Tensor]],
    heads: Sequence[int],
    shape: tuple[int, ...],
    spec: Judges,
    name: str,
    smoothing: float = 0.0,
) -> Judge:
    """A judge from the cache, frozen and in eval mode, or trained now on what ``data`` gives: images and labels.

    ``key`` decides all of it; ``shape`` is that of an image, ``name`` the stream of its first weights and batches.
    """

    def make(folder: Path) -> None:
        save_file(train(*data(), heads, spec, name, smoothing).state_dict(), folder / "judge.safetensors")

    folder = cache.get("judge", key, make)
    with torch.random.fork_rng(devices=[]):
        model = Judge(shape[0], shape[-1], spec.width, heads)
    model.load_state_dict(load_file(folder / "judge.safetensors"))
    return model.requires_grad_(False).eval()


@torch.no_grad()
def in_parts(function: Callable[[Tensor], Any], x: Tensor, device: torch.device, size: int = 500) -> list[Any]:
    """What ``function`` gives for parts of (N, ...), on the CPU where it is a tensor."""
    found = [function(part.to(device)) for part in x.split(size)]
    return [part.cpu() if isinstance(part, Tensor) else part for part in found]


def features_of(judge: Judge, x: Tensor) -> Tensor:
    """(N, 64) features of images, on the CPU."""
    return torch.cat(in_parts(judge.features, x, next(judge.parameters()).device))


def predictions(judge: Judge, x: Tensor) -> Tensor:
    """(N, L) int64 most probable class of each label, on the CPU."""

    def best(part: Tensor) -> Tensor:
        return torch.stack([logits.argmax(1) for logits in judge(part)], dim=1)

    return torch.cat(in_parts(best, x, next(judge.parameters()).device))
