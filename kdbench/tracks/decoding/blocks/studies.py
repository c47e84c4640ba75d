"""What is worth knowing of a decoder that proposes trees: while its draft is trained, and on the test prompts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from kdbench.tracks.decoding.decoders.tree import TreeDecoder
from kdbench.training.state import Values


class Course(Values):
    """Tokens per forward of the target on the validation prompts, measured while the draft is trained."""

    kept = ("efficiencies",)

    def __init__(self, task: Any, decoder: TreeDecoder) -> None:
        self.task, self.decoder = task, decoder
        self.efficiencies: list[list[float]] = []
        """For each time that it was measured the value of each prompt, greedy."""

    def measure(self, step: int) -> None:
        """Measure it now, after optimizer step ``step``, and log the mean."""
        prompts = self.task.prompts_of("val", torch.arange(len(self.task.split("val")))).ids
        written = self.task.decode(self.decoder, prompts)
        pairs = zip(written.tokens, written.forwards, strict=True)
        self.efficiencies.append([len(text) / forwards for text, forwards in pairs])
        self.task.log(step, block_efficiency=float(np.mean(self.efficiencies[-1])))


def declines(course: Sequence[Sequence[float]]) -> int:
    """How often the mean of the same prompts got smaller from one measurement to the next.

    By more than one standard error of the paired difference; smaller steps down count from the second on.

    >>> declines([[1.0, 2.0], [2.0, 3.0], [1.0, 2.0]])
    1
    """
    real = slight = 0
    for before, after in pairwise(course):
        change = np.subtract(after, before)
        error = float(change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else 0.0
        mean = float(change.mean())
        real += mean < -error
        slight += -error <= mean < 0
    return real + max(0, slight - 1)


def tree_study(task: Any, decoder: TreeDecoder) -> dict[str, float]:
    """Measures of a tree decoder on the test prompts, greedy; tables go to the artifact ``tree.json``.

    ``forwards_per_token`` of the target, ``accepted_length``: proposals accepted in a round, ``draft_forwards`` for
    each forward of the target, ``chain_efficiency``: block efficiency of the same draft with chains of the same depth.
    Where the target reads pictures also ``visual_tokens`` that are left for the draft, ``visual_share`` of those that
    there are, ``prefill_flops`` of the draft per prompt, ``prefill_share`` of what they are without compression, and
    ``router/<way>``: share of the prompts that go each way.
    """
    task.require_evaluation()
    prompts, draft = task.test_prompts(), decoder.draft
    written = task.decode(decoder, prompts)
    chain = TreeDecoder(draft, replace(decoder.shape, breadth=1, size=decoder.shape.depth))
    rounds, accepted = sum(written.forwards), sum(written.extra["accepted"])
    values = {
        "forwards_per_token": rounds / max(1, sum(map(len, written.tokens))),
        "accepted_length": accepted / rounds,
        "draft_forwards": written.counters["draft"].forwards / written.counters["target"].forwards,
        "chain_efficiency": task.decode(chain, prompts).block_efficiency,
    }
    kinds = [row.level for row in task.split("test").rows]
    tables: dict[str, Any] = {
        "block_efficiency": _by_kind(kinds, np.divide([*map(len, written.tokens)], written.forwards))
    }
    count = draft.visual_tokens
    if count:
        compressor, left, ways = draft.compressor, written.extra["visual_tokens"], written.extra["way"]
        texts = [len(prompt) - 1 - count for prompt in prompts]
        fusion = 2.0 * draft.fusion.weight.numel()
        flops = [
            fusion * (text + count) + compressor.flops(way, count) + compressor.token_flops * text
            for text, way in zip(texts, ways, strict=True)
        ]
        whole = [(fusion + compressor.token_flops) * (text + count) for text in texts]
        values |= {
            "visual_tokens": float(np.mean(left)),
            "visual_share": float(np.mean(left)) / count,
            "prefill_flops": float(np.mean(flops)),
            "prefill_share": sum(flops) / sum(whole),
        }
        taken = np.array([[float(way == one) for one in range(len(compressor.names))] for way in ways])
        values |= {
            f"router/{name}": float(share) for name, share in zip(compressor.names, taken.mean(axis=0), strict=True)
        }
        tables |= {f"router/{name}": _by_kind(kinds, taken[:, one]) for one, name in enumerate(compressor.names)}
    task.artifact("tree.json").write_text(json.dumps(tables, indent=1) + "\n")
    return values


def _by_kind(kinds: Sequence[str], values: Any) -> dict[str, float]:
    """Mean of values (N,) over the prompts of each kind."""
    groups: dict[str, list[float]] = defaultdict(list)
    for kind, value in zip(kinds, np.asarray(values).tolist(), strict=True):
        groups[kind].append(value)
    return {kind: float(np.mean(group)) for kind, group in sorted(groups.items())}
