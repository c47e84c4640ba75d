"""Plain text, cut into chunks: procedural and CPython's, or of a Hugging Face data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbench.task import Scores
from kdbench.tracks.llm import scoring
from kdbench.tracks.llm.data import text
from kdbench.tracks.llm.data.cpython import Document, rank
from kdbench.tracks.llm.data.encoding import Chunk, Sequences, chunk_documents, encode_texts
from kdbench.tracks.llm.data.specs import HubTextData, TextData
from kdbench.tracks.llm.kinds.base import LanguageKind


class HubText(LanguageKind):
    """Text of a Hugging Face data set or of local files."""

    row = Chunk
    data: HubTextData | TextData

    def content(self, name: str) -> dict[str, Any]:
        from kdbench.tracks.llm.networks.hf import data_digest

        assert isinstance(self.data, HubTextData)
        return {"content": data_digest(self.data, name)}

    def documents(self, name: str) -> list[Document]:
        from kdbench.tracks.llm.networks.hf import text_documents

        assert isinstance(self.data, HubTextData)
        return text_documents(self.data, name)

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        sequences, chunks = chunk_documents(self.documents(name), self.prepared.tokenizer, self.data.chunk)
        return choose(sequences, chunks, getattr(self.data, name), balanced=name != "train")

    def encode_rows(self, rows: Sequence[Any], tokenizer: Any) -> Sequences:
        return encode_texts([chunk.text for chunk in rows], tokenizer)

    def prompt_tokens(self, sequences: Sequences, row: int) -> int:
        """The first quarter of a chunk."""
        return min(max(1, sequences.ids.shape[1] // 4), int(sequences.lengths[row]))

    def measure(self, task: Any, model: nn.Module) -> Scores:
        """perplexity, also by domain and of the worst one; loss (nats/token), bits_per_byte, token_accuracy, ece."""
        result, _ = scoring.teacher_forced(task, model, "test")
        split = task.split("test")
        reference = scoring.scored_tokens(split.sequences)
        metrics = scoring.token_metrics(result, int(reference.sum()))
        size = np.array([len(chunk.text.encode()) for chunk in split.rows])
        sums = np.bincount(result.row, weights=result.nll, minlength=len(split))
        metrics["bits_per_byte"] = float(sums.sum() / size.sum() / math.log(2))
        domains = np.array([chunk.domain for chunk in split.rows])
        by_domain = {}
        for name in sorted(set(domains.tolist())):
            chosen = domains == name
            by_domain[name] = math.exp(min(float(sums[chosen].sum() / reference[chosen].sum()), 700.0))
        if len(by_domain) > 1:
            metrics |= {f"perplexity/{name}": value for name, value in by_domain.items()}
            metrics["worst_domain_perplexity"] = max(by_domain.values())
        return Scores(metrics, {"loss": sums / reference, "bits_per_byte": sums / size / math.log(2)})


class Text(HubText):
    """Documentation and code of CPython, procedural facts and arithmetic."""

    data: TextData
    _documents: dict[str, list[Document]] | None = None

    def content(self, name: str) -> dict[str, Any]:
        return {}

    def documents(self, name: str) -> list[Document]:
        if self._documents is None:
            self._documents = text.documents(self.data, self.cache)
        return self._documents[name]

    def stage_rows(self, objective: str) -> Sequences:
        """Teachers and initialisations read clean text, whatever noise the task injects."""
        if self.data.noise:
            clean = self.data.model_copy(update={"noise": 0.0})
            return self.prepared.of(clean).stage_rows(objective)
        return super().stage_rows(objective)

    def tokenizer_texts(self) -> Iterable[str]:
        # in a random order, so that a cap on the text leaves every domain in it
        clean = text.documents(self.data.model_copy(update={"noise": 0.0}), self.cache)["train"]
        documents = sorted(clean, key=lambda document: rank(document.meta["name"]))
        return (document.text for document in documents)


def choose(
    sequences: Sequences, chunks: list[Chunk], count: int | None, *, balanced: bool
) -> tuple[Sequences, list[Chunk]]:
    """``count`` chunks in their original order, drawn in a fixed random order; ``balanced``: evenly from the domains.

    All of them where ``count`` is None or larger than what there is.
    """
    if count is None or count >= len(chunks):
        return sequences, chunks
    order = sorted(range(len(chunks)), key=lambda i: rank(f"{chunks[i].document} {i}"))
    if balanced:
        queues: dict[str, list[int]] = {}
        for i in order:
            queues.setdefault(chunks[i].domain, []).append(i)
        turns = ((turn, i) for queue in queues.values() for turn, i in enumerate(queue))
        order = [i for _, i in sorted(turns, key=lambda pair: pair[0])]
    kept = sorted(order[:count])
    return sequences.rows(torch.tensor(kept)), [chunks[i] for i in kept]
