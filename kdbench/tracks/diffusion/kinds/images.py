"""Pictures of any data set, for pretrained teachers of pixels or latents, asked for by nothing, a class or a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.errors import UsageError, did_you_mean
from kdbench.task import Scores
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data.specs import ImagesData
from kdbench.tracks.diffusion.evaluate import grids
from kdbench.tracks.diffusion.evaluate.frechet import Moments, distance
from kdbench.tracks.diffusion.evaluate.neighbours import precision_recall
from kdbench.tracks.diffusion.kinds.base import Kind, Split
from kdbench.tracks.diffusion.networks.hub import Pretrained, open_pretrained
from kdbench.tracks.diffusion.processes import Process
from kdbench.tracks.diffusion.samplers.base import Sampled, Sampler
from kdbench.tracks.diffusion.spec import Hub
from kdbench.tracks.vision.data.hf import load_parts

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

PART = 32
"""Pictures that go through a network at a time."""
NEIGHBOURS = 3


class Features:
    """Pooled features of a vision model of transformers."""

    def __init__(self, path: str) -> None:
        """Raises ``UsageError`` where the model cannot be loaded."""
        import transformers
        from transformers.image_processing_base import ImageProcessingMixin

        where = str(Path(path).expanduser()) if path.startswith(("/", ".", "~")) else path
        try:
            self.network: nn.Module = transformers.AutoModel.from_pretrained(where)
            settings, _ = ImageProcessingMixin.get_image_processor_dict(where)
        except (OSError, ValueError) as error:
            raise UsageError(f"the vision model cannot be loaded: {error}", place=f"data.features {path}") from error
        self.network = getattr(self.network, "vision_model", self.network).eval().requires_grad_(False)
        self.size: int = self.network.config.image_size  # type: ignore[union-attr, assignment]
        self.mean, self.std = (torch.tensor(settings[key]).view(1, -1, 1, 1) for key in ("image_mean", "image_std"))

    @torch.no_grad()
    def __call__(self, pictures: Tensor, device: torch.device) -> Tensor:
        """(N, D) float32 of pictures (N, 3, H, W) in [-1, 1]."""
        self.network.to(device)
        found = []
        for part in pictures.split(PART):
            small = nn.functional.interpolate(
                (part.to(device) + 1) / 2, (self.size, self.size), mode="bilinear", antialias=True
            )
            out = self.network(pixel_values=(small - self.mean.to(device)) / self.std.to(device))
            pooled = out.pooler_output
            found.append((out.last_hidden_state[:, 0] if pooled is None else pooled).float().cpu())
        return torch.cat(found)


class Images(Kind):
    """A data set of pictures; samples are states of the pretrained teacher, measures are of pictures."""

    @property
    def data(self) -> ImagesData:
        """The task's data."""
        assert isinstance(self.spec.data, ImagesData)
        return self.spec.data

    # --- the teacher --------------------------------------------------------------------------------------------------

    @cached_property
    def pretrained(self) -> Pretrained:
        """The teacher with its coders of pictures and texts."""
        if not isinstance(self.spec.teacher, Hub):
            raise UsageError(f"{self.spec.name} needs a pretrained teacher: teacher.kind is hub")
        return open_pretrained(self.spec.teacher)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.pretrained.denoiser.shape

    @cached_property
    def process(self) -> Process:  # type: ignore[override]
        return self.pretrained.denoiser.process

    @property
    def vocabulary(self) -> tuple[int, ...]:  # type: ignore[override]
        return () if self.data.label is None else (len(self._classes) + 1,)

    # --- data ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _parts(self) -> dict[str, Any]:
        """Rows of every split, with the columns that are read."""
        import datasets

        data, place = self.data, f"data.path {self.data.path}"
        found, parts = load_parts(data.path, data.config, data.revision), {}
        for role, name in data.parts.items():
            if name not in found:
                hint = did_you_mean(name, list(found), label="parts")
                raise UsageError(f"the data set has no part {name!r}", place=place, hint=hint)
            part = found[name]
            for column in filter(None, (data.image, data.label, data.text)):
                if column not in part.column_names:
                    hint = did_you_mean(column, part.column_names, label="columns")
                    raise UsageError(f"the data set has no column {column!r}", place=place, hint=hint)
            if not isinstance(part.features[data.image], datasets.Image):
                part = part.cast_column(data.image, datasets.Image())
            parts[role] = part
        rows = len(parts["train"])
        held = 0 if "test" in parts else data.test
        if rows <= data.val + held:
            raise UsageError(f"{rows} pictures are too few to hold out {data.val + held} of them", place=place)
        if held:
            parts["test"] = parts["train"].select(range(rows - held, rows))
        end = rows - held - data.val
        parts["val"] = parts["train"].select(range(end, end + data.val))
        parts["train"] = parts["train"].select(range(min(end, data.train)))
        parts["test"] = parts["test"].select(range(min(len(parts["test"]), data.test)))
        return parts

    @cached_property
    def _classes(self) -> list[int]:
        return sorted({int(label) for part in self._parts.values() for label in part[self.data.label]})

    def pictures_of(self, name: str) -> Tensor:
        """(N, 3, size, size) float32 in [-1, 1], the pictures of a split."""
        from PIL import Image

        side, part = self.data.size, self._parts[name]
        out = torch.empty(len(part), 3, side, side)
        for row, picture in enumerate(part[self.data.image]):
            small = picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
            out[row] = torch.from_numpy(np.asarray(small, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
        return out

    def make(self, name: str) -> Split:
        pictures = self.pictures_of(name)
        states = torch.cat([self.pretrained.encode(part).cpu() for part in pictures.split(PART)])
        return Split(states, self._condition(self._parts[name]))

    def _condition(self, part: Any) -> Condition:
        if self.data.label is not None:
            return Condition.of_tokens(torch.tensor(part[self.data.label]) + 1)
        if self.data.text is None:
            return Condition.none(len(part))
        texts = list(part[self.data.text])
        batches = [self.pretrained.prompts(texts[row : row + PART]) for row in range(0, len(texts), PART)]
        return Condition.cat(batches).to("cpu")

    # --- measures -----------------------------------------------------------------------------------------------------

    @cached_property
    def features(self) -> Features:
        return Features(self.data.features)

    @cached_property
    def _reference(self) -> dict[str, Tensor]:
        return {}

    def reference(self, split: str, device: torch.device) -> Tensor:
        """(N, D) features of the real pictures of a split."""
        if split not in self._reference:
            self._reference[split] = self.features(self.pictures_of(split), device)
        return self._reference[split]

    @torch.no_grad()
    def _decoded(self, x: Tensor, device: torch.device) -> Tensor:
        decode = self.pretrained.to(device).decode
        return torch.cat([decode(part.to(device)).clamp(-1, 1).cpu() for part in x.split(PART)])

    def compare(self, sampled: Sampled, split: str, device: torch.device) -> dict[str, float]:
        """fd, precision and recall of the features, and nfe."""
        found = self.features(self._decoded(sampled.x, device), device)
        real = self.reference(split, device)
        precision, recall = precision_recall(real, found, min(NEIGHBOURS, len(real) - 1, len(found) - 1))
        fd = distance(Moments.of(found), Moments.of(real))
        return {"fd": fd, "precision": precision, "recall": recall, "nfe": sampled.nfe}

    def validate(self, task: DiffusionTask, sampler: Sampler) -> dict[str, float]:
        sampled = self.samples(sampler, task.spec.evaluation.val_samples, "val", task.device)
        return self.compare(sampled, "val", task.device)

    def measure(self, task: DiffusionTask, sampler: Sampler) -> Scores:
        """See :meth:`compare`; ``samples.json`` has all, and pictures show some."""
        sampled = self.samples(sampler, task.spec.evaluation.samples, "test", task.device)
        metrics = self.compare(sampled, "test", task.device)
        task.artifact("samples.json").write_text(json.dumps(metrics, indent=1) + "\n")
        grids.keep(task, self.pictures(task, sampled, Condition.none(len(sampled.x))))
        return Scores(metrics)

    def pictures(self, task: DiffusionTask, sampled: Sampled, cond: Condition) -> Mapping[str, Any]:
        side = task.spec.evaluation.grid
        shown = self._decoded(sampled.x[: side * side], task.device)
        return {"samples.png": grids.tiles(shown, side, scale=1, caption="Samples")}
