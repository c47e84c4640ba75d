"""How fast the guesses of Jacobi decoding settle, and what recycling and several blocks at a time add to it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from kdbench.tracks.decoding.blocks.guesses import agreement
from kdbench.tracks.decoding.blocks.trajectories import Trajectory, collect
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.jacobi import Jacobi
from kdbench.tracks.llm.networks.tokenizers import pad_id


def settling(trajectories: list[Trajectory]) -> dict[str, float]:
    """Of blocks that were guessed at random and refined one at a time, the mean of each:

    ``iterations``: forwards until the fixed point is there; ``stationary_prefix``: tokens at the start of a block that
    are final after its first forward; ``stationary_tokens``: tokens behind the first wrong one that are right then.
    """
    iterations, prefixes, tokens = [], [], []
    for trajectory in trajectories:
        for block in trajectory.blocks:
            final, first = block[-1], block[min(1, len(block) - 1)]
            prefix = agreement(first, final)
            iterations.append(len(block) - 1)
            prefixes.append(prefix)
            tokens.append(sum(a == b for a, b in zip(first[prefix:], final[prefix:], strict=True)))
    count = max(1, len(iterations))
    return {
        "iterations": sum(iterations) / count,
        "stationary_prefix": sum(prefixes) / count,
        "stationary_tokens": sum(tokens) / count,
    }


def convergence(task: Any, decoder: Jacobi) -> dict[str, float]:
    """:func:`settling` on the test prompts, and the decoder with and without its two extensions.

    ``block_efficiency/single``: a block at a time, nothing recycled; ``/recycling``, ``/blocks``: with one of the two;
    ``/both``. ``identity_errors`` is the share of all these responses that are not what the same weights write token by
    token. The artifact ``windows.json`` has tokens, forwards and what was recycled and begun ahead.
    """
    model, prompts, window = decoder.writer(task.teacher()), task.test_prompts(), decoder.window
    limits = {
        "max_new": task.spec.evaluation.max_new,
        "eos": task.tokenizer.eos_token_id,
        "pad": pad_id(task.tokenizer),
    }
    alone = Autoregressive().decode(model, prompts, **limits).tokens
    found = settling(collect(model, prompts, window.block, **limits).trajectories)
    ahead, kept = max(2, window.blocks), max(1, window.pool)
    windows = {
        "single": replace(window, blocks=1, pool=0),
        "recycling": replace(window, blocks=1, pool=kept),
        "blocks": replace(window, blocks=ahead, pool=0),
        "both": replace(window, blocks=ahead, pool=kept),
    }
    wrong, table = 0, {}
    for name, variant in windows.items():
        written = decoder.with_window(variant).decode(task.teacher(), prompts, **limits)
        wrong += sum(a != b for a, b in zip(written.tokens, alone, strict=True))
        found[f"block_efficiency/{name}"] = written.block_efficiency
        counts = {key: sum(values) for key, values in written.extra.items()}
        table[name] = {"tokens": sum(map(len, written.tokens)), "forwards": sum(written.forwards), **counts}
    found["identity_errors"] = wrong / (len(prompts) * len(windows))
    task.artifact("windows.json").write_text(json.dumps(table, indent=1) + "\n")
    return found
