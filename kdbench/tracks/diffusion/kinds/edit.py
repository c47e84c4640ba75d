"""Pictures, instructions and the exact results: what an editor is told with a source image and a word."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdbench.errors import Diverged, UsageError, did_you_mean
from kdbench.task import Scores, seed_of
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data import digits, effects
from kdbench.tracks.diffusion.data.specs import EditData
from kdbench.tracks.diffusion.evaluate import grids
from kdbench.tracks.diffusion.evaluate.editing import bleeding
from kdbench.tracks.diffusion.evaluate.images import psnr, ssim
from kdbench.tracks.diffusion.kinds.base import Kind, Split
from kdbench.tracks.diffusion.samplers.base import Sampled, Sampler

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

SIZE = 16
HIGHEST = 60.0
"""dB that the PSNR of an image counts for at most; that of an exact copy is infinite."""


class Edit(Kind):
    """Digits of 16x16 pixels. Tokens are an instruction, and a tag that no training image has: one word of each for
    every effect, in the order of :attr:`instructions`."""

    shape = (1, SIZE, SIZE)
    image_channels = 1

    @property
    def data(self) -> EditData:
        """The task's data."""
        assert isinstance(self.spec.data, EditData)
        return self.spec.data

    @cached_property
    def instructions(self) -> tuple[str, ...]:
        """Effects, those that no teacher has learned last; token i + 1 is the i-th."""
        for name in (*self.data.effects, *self.data.unseen):
            if name not in effects.EFFECTS:
                hint = did_you_mean(name, sorted(effects.EFFECTS), label="effects")
                raise UsageError(f"there is no effect {name!r}; {hint}", place="data.effects")
        return (*self.data.effects, *self.data.unseen)

    @property
    def vocabulary(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.instructions) + 1,) * 2

    @cached_property
    def data_std(self) -> float:  # type: ignore[override]
        """Of the training images, to two decimals."""
        return round(float(self.split("train").x.double().std()), 2)

    # --- data ---------------------------------------------------------------------------------------------------------

    def tokens(self, name: str, count: int, tag: str | None = None) -> Tensor:
        """(count, 2) the instruction and, where one is given, the tag of an effect."""
        row = [self._word(name), 0 if tag is None else self._word(tag)]
        return torch.tensor([row]).expand(count, 2).contiguous()

    def _word(self, name: str) -> int:
        if name not in self.instructions:
            raise UsageError(
                f"no instruction {name!r}; {did_you_mean(name, list(self.instructions), label='instructions')}"
            )
        return self.instructions.index(name) + 1

    def _sources(self, split: str, count: int, generator: torch.Generator) -> Tensor:
        rows = digits.rows_of(split, self.data.seed)
        return digits.images(SIZE)[0][rows[torch.randint(len(rows), (count,), generator=generator)]]

    def make(self, name: str) -> Split:
        generator = torch.Generator().manual_seed(seed_of("diffusion/edit", self.data.seed, name))
        source = self._sources(name, getattr(self.data, name), generator)
        which = torch.randint(len(self.data.effects), (len(source),), generator=generator)
        tokens = torch.stack([which + 1, torch.zeros_like(which)], dim=1)
        target = effects.apply_each(self.data.effects, which, source)
        return Split(target, Condition(len(source), tokens=tokens, image=source))

    def effect(self, task: DiffusionTask, name: str, split: str = "train", count: int = 500) -> Split:
        """``count`` examples of one effect, which a teacher need not have learned; always the same ones.

        Raises ``TestDataError`` for test images inside ``train``.
        """
        if split not in ("train", "val"):
            task.require_evaluation()
        seed = seed_of("diffusion/effect", self.data.seed, name, split)
        source = self._sources(split, count, torch.Generator().manual_seed(seed))
        return Split(effects.apply(name, source), Condition(count, tokens=self.tokens(name, count), image=source))

    # --- measures -----------------------------------------------------------------------------------------------------

    def by_effect(self, x: Tensor, cond: Condition) -> dict[str, dict[str, float]]:
        """``fidelity`` (mean PSNR to the exact target, dB) and ``bleeding`` by effect of outputs for conditions.

        Bleeding is towards the targets of all instructions that a teacher has learned.
        """
        assert cond.tokens is not None
        assert cond.image is not None
        x, found = x.cpu().clamp(-1, 1), {}
        for word in cond.tokens[:, 0].unique().tolist():
            rows, name = cond.tokens[:, 0].cpu() == word, self.instructions[word - 1]
            out, source = x[rows], cond.image.cpu()[rows]
            own = effects.apply(name, source)
            others = [effects.apply(other, source) for other in self.data.effects if other != name]
            found[name] = {
                "fidelity": float(psnr(out, own).clamp(max=HIGHEST).mean()),
                "bleeding": bleeding(out, own, others),
            }
        return found

    def compare(
        self, task: DiffusionTask, sampler: Sampler, split: str
    ) -> tuple[dict[str, float], dict[str, Any], dict[str, Tensor], Sampled]:
        """Metrics, those by effect, values per image (N,), and the samples for the first rows of a split."""
        evaluation = task.spec.evaluation
        usual = evaluation.samples if split == "test" else evaluation.val_samples
        count = min(usual, len(self.split(split)))
        sampled = self.samples(sampler, count, split, task.device)
        if sampled.x.isnan().any():
            raise Diverged("samples are not numbers")
        x, wanted, cond = sampled.x.cpu().clamp(-1, 1), self.split(split).x[:count], self.split(split).cond[:count]
        values = {"psnr": psnr(x, wanted).clamp(max=HIGHEST), "ssim": ssim(x, wanted)}
        table = self.by_effect(x, cond)
        metrics = {name: float(value.mean()) for name, value in values.items()} | {"nfe": sampled.nfe}
        for name in ("fidelity", "bleeding"):
            metrics[name] = sum(row[name] for row in table.values()) / len(table)
        return metrics, table, values, sampled

    def validate(self, task: DiffusionTask, sampler: Sampler) -> dict[str, float]:
        return self.compare(task, sampler, "val")[0]

    def measure(self, task: DiffusionTask, sampler: Sampler) -> Scores:
        """psnr (dB), ssim, fidelity (dB) and bleeding (means over effects), nfe; ``effects.json`` has all by effect."""
        metrics, table, values, sampled = self.compare(task, sampler, "test")
        task.artifact("effects.json").write_text(json.dumps(table, indent=1) + "\n")
        grids.keep(task, self.pictures(task, sampled, self.split("test").cond[: len(sampled.x)]))
        return Scores(metrics, {name: value.numpy() for name, value in values.items()})

    def pictures(self, task: DiffusionTask, sampled: Sampled, cond: Condition) -> Mapping[str, Any]:
        """Sources, results and exact targets, a row an effect, and the way from noise to some results."""
        assert cond.tokens is not None
        assert cond.image is not None
        words = cond.tokens[:, 0].cpu()
        wanted = effects.apply_each(self.instructions, words - 1, cond.image.cpu())
        triples = torch.stack([cond.image.cpu(), sampled.x.cpu(), wanted], dim=1)
        each = max(task.spec.evaluation.grid // 3, 1)
        names = [self.instructions[word - 1] for word in words.unique().tolist() if (words == word).sum() >= each]
        rows = grids.by_group(triples, words, each)
        found = {"trajectory.png": grids.way(sampled.trajectory, caption="From noise to results, one step a column")}
        if len(rows):
            caption = f"Source, result and exact target, {each} of each; from the top: {', '.join(names)}"
            found["results.png"] = grids.tiles(rows.flatten(0, 1), 3 * each, caption=caption)
        return found
