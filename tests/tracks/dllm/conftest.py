"""A mask predictor with random weights that is sure of what it says, prompts for it, and a task."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from kdbench.registry import Registry, discover
from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.networks.transformer import Shape, Transformer
from kdbench.tracks.dllm.spec import Net
from kdbench.tracks.dllm.task import DllmTask

VOCABULARY, MASK, EOS, WINDOW = 12, 1, 0, 5


def predictor(seed=0, length=8, sharp=6.0, causal=False):
    """Logits of some size, in float64: predictions differ in confidence, and change as the canvas fills."""
    torch.manual_seed(seed)
    shape = Shape(Net(layers=2, width=16, heads=2), WINDOW + length, VOCABULARY, MASK, EOS, causal)
    net = Transformer(shape).double()
    with torch.no_grad():
        net.head.weight.mul_(sharp)
        for parameter in net.blocks.parameters():
            parameter.mul_(1.5)
    return net.requires_grad_(False).eval()


def some_prompts(count=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (count, WINDOW), generator=generator)
    present = torch.arange(WINDOW) < torch.randint(2, WINDOW + 1, (count, 1), generator=generator)
    return Prompts(ids.masked_fill(~present, EOS), present)


@pytest.fixture
def net():
    return predictor()


@pytest.fixture
def prompts():
    return some_prompts()


@lru_cache(maxsize=1)
def registry() -> Registry:
    return discover()


@pytest.fixture
def make(tmp_path):
    def task(name="fixed", seed=0, phase="train", **overrides):
        spec = registry().task(f"dllm/{name}", "smoke", overrides or None)
        made = DllmTask(spec, seed=seed, method="dllm/probe", folder=tmp_path)
        made.phase = phase
        return made

    return task
