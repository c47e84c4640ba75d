"""What writing with a language model costs against the length of its input: time, memory and FLOPs, with its cache.

Everything goes through :func:`kdbench.tracks.llm.generation.stepper`, the code that answers are written with, at batch
size one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import EncoderDecoderCache

from kdbench.tracks.llm.generation import Stepper, stepper

WARM_UP = 2
"""Generations that are not counted."""


@dataclass(frozen=True)
class WritingCost:
    """Of one response to one input."""

    input_tokens: int
    first_token_seconds: float
    """From the ids of the input to the logits of the first token; median."""
    token_seconds: float
    """Of each later token; median over responses of their mean."""
    tokens_per_second: float
    """All tokens of a response by the whole time, the first token included."""
    peak_bytes: int
    """Most memory that was allocated at a time beyond the weights."""
    cache_bytes: int
    """Keys and values that are remembered when the response is finished."""
    first_token_flops: int
    token_flops: int
    """Of the last token."""


def writing_cost(model: nn.Module, ids: Tensor, *, tokens: int, repeats: int) -> WritingCost:
    """Cost of ``tokens`` (at least 2) greedy tokens after ``ids`` (1, P), over ``repeats`` responses after a warm-up.

    FLOPs are counted with attention as plain matrix products, which the counter knows on every device.
    """
    device = next(model.parameters()).device
    was_training, ids = model.training, ids.to(device)
    model.eval()
    try:
        with torch.no_grad():
            timed = [_timed(model, ids, tokens, device) for _ in range(WARM_UP + repeats)][WARM_UP:]
            peak = _peak_bytes(lambda: _write(model, ids, tokens), device)
            first, later, writer = _counted(model, ids, tokens)
    finally:
        model.train(was_training)
    return WritingCost(
        input_tokens=ids.shape[1],
        first_token_seconds=median(first for first, _ in timed),
        token_seconds=median(rest / (tokens - 1) for _, rest in timed),
        tokens_per_second=median(tokens / (first + rest) for first, rest in timed),
        peak_bytes=peak,
        cache_bytes=cache_bytes(writer),
        first_token_flops=first,
        token_flops=later,
    )


def costs_by_length(
    model: nn.Module, lengths: Sequence[int], vocabulary: int, generator: torch.Generator, *, tokens: int, repeats: int
) -> list[WritingCost]:
    """As :func:`writing_cost` for inputs of each length, of random token ids below ``vocabulary``."""
    return [
        writing_cost(model, torch.randint(vocabulary, (1, length), generator=generator), tokens=tokens, repeats=repeats)
        for length in lengths
    ]


def cache_bytes(writer: Stepper) -> int:
    """Size of the keys and values that a writer remembers."""
    cache: Any = writer.cache  # type: ignore[attr-defined]
    both = isinstance(cache, EncoderDecoderCache)
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if both else [cache]
    return sum(layer.keys.nbytes + layer.values.nbytes for part in parts for layer in part.layers)


def _start(model: nn.Module, ids: Tensor) -> Stepper:
    return stepper(model, ids, torch.ones_like(ids))


def _write(model: nn.Module, ids: Tensor, tokens: int) -> Stepper:
    writer = _start(model, ids)
    logits = writer.logits
    for _ in range(tokens - 1):
        logits = writer(logits.argmax(dim=-1))
    return writer


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _timed(model: nn.Module, ids: Tensor, tokens: int, device: torch.device) -> tuple[float, float]:
    """Seconds to the first token and from there to the last."""
    begin = _now(device)
    writer = _start(model, ids)
    logits, first = writer.logits, _now(device)
    for _ in range(tokens - 1):
        logits = writer(logits.argmax(dim=-1))
    return first - begin, _now(device) - first


def _counted(model: nn.Module, ids: Tensor, tokens: int) -> tuple[int, int, Stepper]:
    """FLOPs of the first token and of the last one, and what wrote them."""
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as first:
            writer = _start(model, ids)
        logits = writer.logits
        for _ in range(tokens - 2):
            logits = writer(logits.argmax(dim=-1))
        with FlopCounterMode(display=False) as last:
            writer(logits.argmax(dim=-1))
    return first.get_total_flops(), last.get_total_flops(), writer


def _peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that ``run`` has allocated at a time, by PyTorch's own account of its allocations."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
