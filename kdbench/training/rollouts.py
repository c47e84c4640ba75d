"""Training on what a model itself generates: samples of the model as it is now, mixed with data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from kdbench.task import count_parameters
from kdbench.training.loaders import Epochs


def answering(
    task: Any,
    model: nn.Module,
    *,
    max_new: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    purpose: str = "rollout",
) -> Callable[[Any], Any]:
    """A function prompts -> batch of one response of ``model`` to each, with the weights of the moment.

    No gradient goes through the sampling, and dropout is off while it lasts. Tokens come from a random stream of their
    own; ``purpose`` tells two of one job apart. Spends ``flops``: two per parameter and token read or written.
    """
    tokens = task.generator(f"{purpose}/tokens")
    parameters = count_parameters(model)

    def answer(prompts: Any) -> Any:
        batch = task.rollout(
            model,
            prompts,
            max_new=max_new,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            generator=tokens,
        )
        task.budget.spend("flops", 2.0 * parameters * int(batch.attention_mask.sum()))
        return batch

    return answer


def sampler(task: Any, model: nn.Module, *, purpose: str = "rollout", **sampling: Any) -> Callable[[int], Any]:
    """A function n -> batch of n responses of ``model``, with the weights of the moment, to training prompts.

    Prompts come from a random stream of their own, so that the same job draws the same prompts whatever the model
    answers. ``sampling`` and what is spent are those of :func:`answering`.
    """
    prompts = task.generator(f"{purpose}/prompts")
    answer = answering(task, model, purpose=purpose, **sampling)
    return lambda n: answer(task.prompts("train", n, prompts))


@dataclass
class Answered:
    """A batch of data, and what a model answers to the same prompts."""

    data: Any
    own: Any
    """The responses of the model, as a batch whose response tokens are scored."""

    def __len__(self) -> int:
        return len(self.data)


class AnsweredBatches:
    """Batches of data, each with new answers to its prompts: on-policy targets beside the ground truth."""

    def __init__(self, task: Any, source: Iterable[Any], answer: Callable[[Any], Any]) -> None:
        """``answer(prompts)`` as of :func:`answering`; the rows of ``source`` are those of a split of ``task``."""
        self.task, self.source, self.answer = task, Epochs(source), answer

    def __iter__(self) -> Iterator[Answered]:
        for batch in self.source.epoch():
            yield Answered(batch, self.answer(self.task.prompts_of(batch.split, batch.index)))

    def state_dict(self) -> dict[str, Any]:
        """Where the data is; the states of the generators are not part of it."""
        return {"source": self.source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there."""
        self.source.load_state_dict(state["source"])


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
