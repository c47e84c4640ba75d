"""A differentiable reward of images: what a classifier of taste says, what is asked for, contrast and sharpness."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.evaluate.classifiers import Judge


def contrast(x: Tensor) -> Tensor:
    """(B,) standard deviation of the pixels of (B, C, H, W) in [-1, 1]; at most 1."""
    return x.flatten(1).std(1, correction=0)


def sharpness(x: Tensor) -> Tensor:
    """(B,) mean absolute difference of neighbouring pixels, halved; in [0, 1] for images in [-1, 1]."""
    down = (x[..., 1:, :] - x[..., :-1, :]).abs().flatten(1).mean(1)
    right = (x[..., 1:] - x[..., :-1]).abs().flatten(1).mean(1)
    return (down + right) / 4


def prompt_log_prob(judge: Judge, x: Tensor, tokens: Tensor) -> Tensor:
    """(B,) mean log-probability of the tokens (B, L) that are asked for; null tokens ask for nothing.

    The judge has a head per slot, whose class c is token c + 1; tokens beyond them ask for nothing either.
    """
    total = x.new_zeros(len(x))
    count = x.new_zeros(len(x))
    for slot, logits in enumerate(judge(x)):
        asked = (tokens[:, slot] >= 1) & (tokens[:, slot] <= logits.shape[1])
        wanted = (tokens[:, slot] - 1).clamp(0, logits.shape[1] - 1)
        value = F.log_softmax(logits.float(), dim=1).gather(1, wanted[:, None])[:, 0]
        total = total + torch.where(asked, value, 0.0)
        count = count + asked
    return total / count.clamp(min=1)


class Reward(nn.Module):
    """log p(pleasing | x) + ``prompt`` * log p(prompt | x) + ``contrast`` * contrast + ``sharpness`` * sharpness.

    Frozen; gradients reach the images alone. The prompt is read by another judge than the one that scores prompts.
    """

    def __init__(
        self,
        taste: Judge,
        reader: Judge | None = None,
        *,
        prompt: float = 0.0,
        contrast: float = 0.5,
        sharpness: float = 0.5,
    ) -> None:
        """``taste`` has one head of two classes, of which 1 is pleasing. Raises ``UsageError`` for a prompt without
        a reader."""
        super().__init__()
        if prompt and reader is None:
            raise UsageError("a reward for the prompt needs a judge that reads prompts")
        self.taste = taste
        self.reader = reader
        self.prompt, self.contrast, self.sharpness = prompt, contrast, sharpness
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """(B,) rewards of images (B, C, H, W); images beyond [-1, 1] are cut, so that contrast has an end."""
        x = x.clamp(-1, 1)
        value = F.log_softmax(self.taste(x)[0].float(), dim=1)[:, 1]
        value = value + self.contrast * contrast(x) + self.sharpness * sharpness(x)
        if self.prompt and self.reader is not None:
            if cond is None or cond.tokens is None:
                raise UsageError("a reward for the prompt needs the prompts")
            value = value + self.prompt * prompt_log_prob(self.reader, x, cond.tokens)
        return value
