"""Text that models are trained on in short chunks and evaluated on at several lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbench.task import Scores
from kdbench.tracks.llm.data import lengths
from kdbench.tracks.llm.data.encoding import Sequences, encode, pack
from kdbench.tracks.llm.data.lengths import Probe
from kdbench.tracks.llm.data.specs import LengthsData
from kdbench.tracks.llm.evaluate import forced
from kdbench.tracks.llm.kinds.text import Text
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id


class Lengths(Text):
    """As text; of the training chunks some hold a pass key, and a split of probes has rows of every length."""

    data: LengthsData
    row = Probe
    names = ("train", "val", "test", "probes")

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        data, tokenizer = self.data, self.prepared.tokenizer
        rng = np.random.default_rng([data.seed, 0x9A55, *name.encode()])
        if name == "probes":
            documents = self.documents("test")
            sequences, probes = lengths.windows(documents, tokenizer, data.lengths, data.stride, data.windows)
            for length in sorted(data.lengths):
                made = lengths.passkeys(documents, tokenizer, length, data.passkeys, data.key_letters, rng)
                sequences, probes = sequences + pack(*made[:2], pad_id(tokenizer)), [*probes, *made[2]]
            return sequences, probes
        sequences, chunks = super().make(name)
        if name == "train" and data.passkey_share:
            count = round(len(chunks) * data.passkey_share / (1 - data.passkey_share))
            rows, _, keys = lengths.passkeys(self.documents(name), tokenizer, data.chunk, count, data.key_letters, rng)
            # plain chunks: every token is scored, and the text of the row is all of it
            sequences = sequences + pack(rows, [1] * len(rows), pad_id(tokenizer))
            chunks = [*chunks, *(Probe(key.text + key.response, key.domain, key.document) for key in keys)]
        return sequences, chunks

    def encode_rows(self, rows: Sequence[Any], tokenizer: Any) -> Sequences:
        start = start_id(tokenizer)
        prompts, responses = (encode([getattr(row, part) for row in rows], tokenizer) for part in ("text", "response"))
        made = [[start, *prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        starts = [1 + len(prompt) if row.length else 1 for row, prompt in zip(rows, prompts, strict=True)]
        return pack(made, starts, pad_id(tokenizer))

    def measure(self, task: Any, model: nn.Module) -> Scores:
        """As text, and for every length L ``perplexity/L`` of the last tokens of windows and exact match ``passkey/L``.

        The windows of all lengths end in the same tokens, and only these are scored, by one forward of each window. The
        answer to a pass key is right where each of its tokens is the most probable one.
        """
        scores, split = super().measure(task, model), task.split("probes")
        own = self.same_tokens(task, split, task.tokenizer_of(model))
        length = np.array([probe.length for probe in split.rows])
        key = np.array([probe.domain == "passkey" for probe in split.rows])
        tokens = task.spec.evaluation.batch_size * self.data.chunk
        for size in sorted(self.data.lengths):
            for name, chosen in (("perplexity", ~key), ("passkey", key)):
                rows = own.rows(torch.from_numpy((chosen & (length == size)).nonzero()[0]))
                result = forced(model, rows.batches(max(1, tokens // size), "probes"), task.device)
                if name == "perplexity":
                    loss = float(result.nll.sum()) / (self.data.stride * len(rows))
                    value = math.exp(min(loss, 700.0))
                else:
                    wrong = np.bincount(result.row, weights=1 - result.correct, minlength=len(rows))
                    value = float((wrong == 0).mean())
                scores.metrics[f"{name}/{size}"] = value
        return scores
