"""Digits with attributes, asked for by a prompt of six tokens, and concepts that no teacher knows."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdbench.errors import UsageError, did_you_mean
from kdbench.task import seed_of
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data import attributes, digits
from kdbench.tracks.diffusion.data.attributes import SLOTS, Concept
from kdbench.tracks.diffusion.data.specs import AttributesData
from kdbench.tracks.diffusion.evaluate import grids
from kdbench.tracks.diffusion.evaluate.classifiers import features_of, in_parts
from kdbench.tracks.diffusion.evaluate.neighbours import diversity
from kdbench.tracks.diffusion.kinds.base import Split
from kdbench.tracks.diffusion.kinds.judged import Judged
from kdbench.tracks.diffusion.samplers.base import Sampler

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

PROMPTS = 2
"""Prompts that diversity is measured on, as a multiple of ``evaluation.grid``, which is the number of seeds of each."""
LESSONS = 600
"""Images of each concept that the judge of glyphs is trained on, at most a tenth of the training images."""


class Attributes(Judged):
    """Images of 16x16 pixels; the class slot has a word for every concept behind those of the digits."""

    shape = (1, attributes.SIZE, attributes.SIZE)
    classes = tuple(len(words) for words in SLOTS.values())

    @property
    def data(self) -> AttributesData:
        """The task's data."""
        assert isinstance(self.spec.data, AttributesData)
        return self.spec.data

    @cached_property
    def concepts(self) -> dict[str, Concept]:
        """Concepts by name."""
        return {name: Concept.of(name) for name in self.data.concepts}

    @property
    def vocabulary(self) -> tuple[int, ...]:  # type: ignore[override]
        return attributes.vocabulary(len(self.data.concepts))

    def make(self, name: str) -> Split:
        generator = torch.Generator().manual_seed(seed_of("diffusion/attributes", self.data.seed, name))
        ink, labels = digits.glyphs()
        rows = digits.rows_of(name, self.data.seed)
        rows = rows[torch.randint(len(rows), (getattr(self.data, name),), generator=generator)]
        tokens = attributes.random_prompts(labels[rows], generator)
        return Split(attributes.render(ink[rows], tokens), Condition.of_tokens(tokens))

    def conditions(self, count: int, generator: torch.Generator) -> Condition:
        """Prompts, every attribute uniform; no concepts."""
        classes = torch.randint(digits.CLASSES, (count,), generator=generator)
        return Condition.of_tokens(attributes.random_prompts(classes, generator))

    def pleasing(self) -> Tensor:
        """Upright digits whose stroke is not thin."""
        tokens = self.split("train").cond.tokens
        assert tokens is not None
        return ((tokens[:, 2] == 2) & (tokens[:, 1] > 1)).long()

    # --- concepts -----------------------------------------------------------------------------------------------------

    def concept_token(self, name: str) -> int:
        """A concept's word in the slot of the class. Raises ``UsageError`` where the data have no such concept."""
        if name not in self.concepts:
            raise UsageError(f"no concept {name!r}; {did_you_mean(name, list(self.concepts), label='concepts')}")
        return digits.CLASSES + 1 + list(self.concepts).index(name)

    def concept(self, task: DiffusionTask, name: str, split: str = "train", count: int = 8) -> Split:
        """``count`` images of a concept with their prompts, made of the digits of a split, always the same ones.

        Raises ``TestDataError`` for test digits inside ``train``.
        """
        if split not in ("train", "val"):
            task.require_evaluation()
        split_seed = seed_of("diffusion/concept", self.data.seed, name, split)
        return self._concept(name, split, count, split_seed)

    def _concept(self, name: str, split: str, count: int, seed: int) -> Split:
        token = self.concept_token(name)
        ink, labels = digits.glyphs()
        rows = digits.rows_of(split, self.data.seed)
        made = self.concepts[name].glyphs(ink[rows], labels[rows], count, seed)
        generator = torch.Generator().manual_seed(seed)
        tokens = attributes.random_prompts(torch.full((count,), token - 1), generator)
        return Split(attributes.render(made, tokens), Condition.of_tokens(tokens))

    def recognised(self, task: DiffusionTask, x: Tensor, token: int) -> Tensor:
        """(N,) probability that images show the glyph of a token of the class slot, digit or concept.

        Of a judge that has seen concepts made of training digits, and that no method gets: evaluation alone.
        """
        task.require_evaluation()
        judge = self.judge("glyphs", task.device)
        return torch.cat(in_parts(lambda part: judge(part)[0].softmax(1)[:, token - 1], x.clamp(-1, 1), task.device))

    def _lesson(self, role: str) -> tuple[Tensor, Tensor]:
        if role != "glyphs":
            return super()._lesson(role)
        split = self.split("train")
        count = max(min(LESSONS, len(split) // 10), 1)
        parts = [split, *(self._concept(name, "train", count, seed_of("lesson", name)) for name in self.concepts)]
        return torch.cat([part.x for part in parts]), torch.cat([part.cond.tokens for part in parts])[:, :1] - 1  # type: ignore[index]

    def _heads(self, role: str) -> tuple[int, ...]:
        return (digits.CLASSES + len(self.concepts),) if role == "glyphs" else super()._heads(role)

    # --- measures -----------------------------------------------------------------------------------------------------

    def seeds_of_prompts(self, task: DiffusionTask, sampler: Sampler) -> tuple[Tensor, Condition]:
        """Samples of a few prompts of the test data for several seeds each, one prompt after the other."""
        side = task.spec.evaluation.grid
        cond = self.split("test").cond[: PROMPTS * side].repeat(side)
        generator = torch.Generator().manual_seed(seed_of(self.spec.name, "evaluation", "prompts"))
        noise = torch.randn(len(cond), *self.shape, generator=generator)
        sampled = sampler.sample(noise.to(task.device), cond.to(task.device), generator)
        return sampled.x.cpu(), cond

    def more(self, task: DiffusionTask, sampler: Sampler) -> dict[str, float]:
        """Diversity of one prompt, and the accuracy of every slot."""
        x, cond = self.seeds_of_prompts(task, sampler)
        side = task.spec.evaluation.grid
        features = features_of(self.judge("evaluator", task.device), x.clamp(-1, 1))
        assert cond.tokens is not None
        right = self.right(x, cond.tokens, task.device).nanmean(0)
        grids.keep(task, {"prompts.png": grids.tiles(x[: side * side], side, caption="Samples, a row a prompt")})
        return {
            "diversity": diversity(features, torch.arange(len(x)) // side),
            **{f"accuracy/{slot}": float(value) for slot, value in zip(SLOTS, right, strict=True)},
        }
