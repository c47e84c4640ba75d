"""Decoders that are told of an output format themselves, so that the prompt need not mention it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from kdbench.tracks.decoding.data.formats import Format
from kdbench.tracks.decoding.data.problems import answer_in
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.base import Decoded, Decoder
from kdbench.tracks.llm.data.encoding import encode


class FormatDecoder(Decoder):
    """Writes in the format that :meth:`in_format` says; without one it writes as it likes."""

    required: Format | None = None

    def in_format(self, required: Format) -> FormatDecoder:
        """The same decoder for prompts whose answers are required in a format."""
        bound = copy.copy(self)
        bound.required = required
        return bound


class Rewritten(FormatDecoder):
    """The target answers as it likes; a program that knows the task reads the answer off and reformats it."""

    kind: ClassVar[str] = "rewritten"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def decode(
        self,
        target: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        max_new: int,
        eos: int,
        pad: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """As for every decoder; a response without an answer, or with one that the format cannot express, is empty."""
        done = Autoregressive().decode(
            target, prompts, max_new=max_new, eos=eos, pad=pad, temperature=temperature, generator=generator
        )
        if self.required is None:
            return done
        asked = self.tokenizer.batch_decode([list(prompt) for prompt in prompts], skip_special_tokens=True)
        answered = self.tokenizer.batch_decode(done.tokens, skip_special_tokens=True)
        texts = [self._rewrite(prompt, text) for prompt, text in zip(asked, answered, strict=True)]
        done.tokens = [[*ids, eos] for ids in encode(texts, self.tokenizer)]
        return done

    def _rewrite(self, prompt: str, text: str) -> str:
        assert self.required is not None
        answer = answer_in(text)
        if answer is None:
            return ""
        written = self.required.fill(prompt, answer)
        return written if self.required.template.read(written) is not None else ""

    def save(self, folder: Path) -> None:
        """Nothing but the folder: all that it needs is the task's tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def load(cls, folder: Path, task: Any) -> Rewritten:
        return cls(task.tokenizer)
