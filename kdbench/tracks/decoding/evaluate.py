"""What is measured of every decoder, on the test prompts."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from kdbench.task import Scores, count_parameters
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.base import Decoded, Decoder


def measure(task: Any, decoder: Decoder) -> tuple[Scores, Decoded]:
    """Measures that every decoder has, and its greedy responses to the test prompts.

    ``block_efficiency``: tokens per forward of the target (tau), greedy; ``block_efficiency_t1``: at temperature 1;
    ``agreement``: share of prompts whose greedy response is, token for token, what the task's target writes alone;
    ``lossless``: 1 where that is all of them; ``speedup``: wall time of the target alone over that of the decoder;
    ``draft_parameters``: parameters of networks beside the target.
    """
    prompts = task.test_prompts()
    greedy = task.decode(decoder, prompts)
    sampled = task.decode(decoder, prompts, temperature=1.0, generator=task.generator("eval"))
    same = np.array([float(a == b) for a, b in zip(greedy.tokens, task.responses("test", 0.0), strict=True)])
    metrics = {
        "block_efficiency": greedy.block_efficiency,
        "block_efficiency_t1": sampled.block_efficiency,
        "agreement": float(same.mean()),
        "lossless": float(same.min()),
        "speedup": speedup(task, decoder),
        "draft_parameters": float(sum(count_parameters(network) for network in decoder.networks().values())),
    }
    each = [len(text) / max(1, count) for text, count in zip(greedy.tokens, greedy.forwards, strict=True)]
    return Scores(metrics, {"block_efficiency": np.array(each), "agreement": same}), greedy


def speedup(task: Any, decoder: Decoder) -> float:
    """Wall time of the target alone over that of ``decoder``, greedy, one prompt at a time and the two in turns.

    At the size of toys this says more about overheads than about methods.
    """
    prompts = task.test_prompts()[: task.spec.evaluation.timed]
    ways = (Autoregressive(), decoder)
    for way in ways:  # the first forwards of a process are slow
        task.decode(way, prompts[:1])
    seconds = [0.0, 0.0]
    for prompt in prompts:
        for place, way in enumerate(ways):
            started = time.perf_counter()
            task.decode(way, [prompt])
            seconds[place] += time.perf_counter() - started
    return seconds[0] / seconds[1]
