"""Training on what a model itself generates: samples of the model as it is now, mixed with data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from kdbench.task import count_parameters
from kdbench.training.loaders import Epochs


def sampler(
    task: Any,
    model: nn.Module,
    *,
    max_new: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    purpose: str = "rollout",
) -> Callable[[int], Any]:
    """A function n -> batch of n responses of ``model``, with the weights of the moment, to training prompts.

    No gradient goes through the sampling, and dropout is off while it lasts. Prompts and tokens come from random
    streams of their own, so that the same job draws the same prompts whatever the model answers; ``purpose`` tells two
    samplers of one job apart. Spends ``flops``: two per parameter and token read or written.
    """
    prompts, tokens = task.generator(f"{purpose}/prompts"), task.generator(f"{purpose}/tokens")
    parameters = count_parameters(model)

    def sample(n: int) -> Any:
        batch = task.rollout(
            model,
            task.prompts("train", n, prompts),
            max_new=max_new,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            generator=tokens,
        )
        task.budget.spend("flops", 2.0 * parameters * int(batch.attention_mask.sum()))
        return batch

    return sample


class MixedBatches:
    """Batches of data of which a share is replaced by samples (Agarwal et al. 2024, GKD, algorithm 1).

    Iterating gives one epoch of ``source``; the count of steps goes on from epoch to epoch.
    """

    def __init__(
        self,
        source: Iterable[Any],
        sample: Callable[[int], Any],
        chance: Callable[[int], float],
        rng: np.random.Generator,
    ) -> None:
        """``chance(step)`` is the probability that the batch of ``step`` (0-based) is replaced by ``sample(n)``."""
        self.source, self.sample, self.chance, self.rng = Epochs(source), sample, chance, rng
        self.step = 0
        self.sampled = 0

    def __iter__(self) -> Iterator[Any]:
        return self._mixed(self.source.epoch())

    def _mixed(self, source: Iterator[Any]) -> Iterator[Any]:
        for batch in source:
            replaced = self.rng.random() < self.chance(self.step)
            self.step += 1
            self.sampled += replaced
            yield self.sample(len(batch)) if replaced else batch

    def state_dict(self) -> dict[str, Any]:
        """The steps so far and where the data is; the states of the generators are not part of it."""
        return {"step": self.step, "sampled": self.sampled, "source": self.source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there."""
        self.step, self.sampled = state["step"], state["sampled"]
        self.source.load_state_dict(state["source"])
