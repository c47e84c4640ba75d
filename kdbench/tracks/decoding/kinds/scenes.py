"""Questions about pictures, and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from kdbench.errors import JobError
from kdbench.tracks.decoding.data.pictures import SceneSequences
from kdbench.tracks.decoding.data.scenes import Scene, make_crowds, make_scenes, render
from kdbench.tracks.decoding.data.specs import ScenesData
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.kinds.problems import Problems
from kdbench.tracks.decoding.networks.vlm import placeholder
from kdbench.tracks.decoding.spec import Vlm
from kdbench.tracks.llm.data.encoding import Sequences, encode_pairs
from kdbench.tracks.llm.networks.tokenizers import pad_id
from kdbench.tracks.llm.spec import Hub

CROWDS = 12_000
"""Crowded pictures that a target learns to look at."""


class Scenes(Problems):
    """Pictures of coloured shapes; a row is the places of a picture, a question and its answer."""

    data: ScenesData
    row = Scene
    sequences: ClassVar[type[Sequences]] = SceneSequences

    def problems(self, name: str) -> list[Any]:
        return list(make_scenes(self.data, name, getattr(self.data, name)))

    def content(self, name: str) -> dict[str, Any]:
        """Rows also depend on how many tokens the target makes of a picture."""
        return {"picture": self._picture()}

    def _picture(self) -> str:
        target = self.prepared.spec.teacher
        if not isinstance(target, Vlm | Hub):
            raise JobError(f"a target of kind {target.kind!r} reads no pictures; it is of kind vlm or hf")
        return placeholder(target, self.prepared.tokenizer)

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        scenes = self.problems(name)
        return self._encoded(scenes), scenes

    def stage_rows(self, objective: str) -> Sequences:
        """``lm`` is learning to look: questions about pictures of many shapes."""
        if objective != "lm":
            return super().stage_rows(objective)
        return self._encoded(make_crowds(self.data, min(self.data.train, CROWDS)))

    def _encoded(self, scenes: Sequence[Scene]) -> SceneSequences:
        picture = self._picture()
        prompts = [scene.prompt.replace("{image}", picture) for scene in scenes]
        responses = [scene.response for scene in scenes]
        rows, _ = encode_pairs(prompts, responses, self.prepared.tokenizer, self.data.length)
        pictures = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
        return SceneSequences(**vars(rows), pictures=pictures)

    def respond(self, task: Any, model: nn.Module, items: Sequence[Any], **sampling: Any) -> list[str]:
        """Text that the model answers each validation scene with."""
        prompts = task.prompts_of("val", torch.arange(len(items))).ids
        written = Autoregressive().decode(
            model,
            prompts,
            max_new=task.spec.evaluation.max_new,
            eos=task.tokenizer.eos_token_id,
            pad=pad_id(task.tokenizer),
            **sampling,
        )
        return list(task.tokenizer.batch_decode(written.tokens, skip_special_tokens=True))
