"""Text of known domains among text of foreign ones, told apart by the perplexity of a language model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from kdbench.task import Scores
from kdbench.tracks.llm import scoring
from kdbench.tracks.llm.blocks.detection import detection
from kdbench.tracks.llm.data import text
from kdbench.tracks.llm.data.cpython import Document, rank
from kdbench.tracks.llm.data.encoding import Sequences, chunk_documents
from kdbench.tracks.llm.data.specs import Domain, TextOodData
from kdbench.tracks.llm.kinds.text import HubText, choose


def shuffled(documents: Iterable[Document], seed: int) -> list[Document]:
    """Documents with their words in random order; the blanks between them stay where they are."""
    rng, found = np.random.default_rng([seed, 0x5F1E]), []
    for document in documents:
        parts = re.findall(r"\s+|\S+", document.text)
        places = [i for i, part in enumerate(parts) if not part.isspace()]
        words = [parts[i] for i in places]
        for place, word in zip(places, rng.permutation(len(words)), strict=True):
            parts[place] = words[word]
        found.append(Document("".join(parts), "shuffled", {"name": f"shuffled/{document.meta['name']}"}))
    return found


class TextOod(HubText):
    """Procedural and CPython's text, in the distribution and out of it; the test data has both."""

    data: TextOodData

    def content(self, name: str) -> dict[str, Any]:
        return {}

    def documents(self, name: str) -> list[Document]:
        """Documents in the distribution."""
        return self._documents(self.data.inside, name)

    def _documents(self, domains: tuple[Domain, ...], name: str) -> list[Document]:
        return text.documents(self.data.text(domains), self.cache)[name]

    def foreign(self, domain: str, name: str) -> list[Document]:
        """Documents of a domain out of the distribution."""
        if domain == "shuffled":
            return shuffled(self.documents(name), self.data.seed)
        return self._documents((domain,), name)  # type: ignore[arg-type]

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        """Of the test data: chunks in the distribution, then those of each foreign domain."""
        sequences, chunks = super().make(name)
        if name == "test":
            for domain in self.data.outside:
                found = chunk_documents(self.foreign(domain, name), self.prepared.tokenizer, self.data.chunk)
                more, rows = choose(*found, self.data.test_outside, balanced=True)
                sequences, chunks = sequences + more, chunks + rows
        return sequences, chunks

    def tokenizer_texts(self) -> Iterable[str]:
        documents = self._documents(self.data.pretraining, "train")
        return (document.text for document in sorted(documents, key=lambda document: rank(document.meta["name"])))

    def stage_rows(self, objective: str) -> Sequences:
        """``lm`` reads all domains of the pre-training, every other stage those in the distribution."""
        if objective != "lm":
            return super().stage_rows(objective)
        documents = self._documents(self.data.pretraining, "train")
        return chunk_documents(documents, self.prepared.tokenizer, self.data.chunk)[0]

    def measure(self, task: Any, model: nn.Module) -> Scores:
        """auroc, aupr_out, aupr_in, far95 of the perplexity of each row, also by foreign domain (``auroc/<domain>``).

        perplexity, loss and token_accuracy are those of the rows in the distribution.
        """
        result, _ = scoring.teacher_forced(task, model, "test")
        split = task.split("test")
        reference, domains = scoring.scored_tokens(split.sequences), np.array([row.domain for row in split.rows])
        inside = np.isin(domains, self.data.inside)
        losses = np.bincount(result.row, weights=result.nll, minlength=len(split)) / reference
        metrics = detection(losses[inside], losses[~inside])
        for domain in self.data.outside:
            metrics[f"auroc/{domain}"] = detection(losses[inside], losses[domains == domain])["auroc"]
        known = inside[result.row]
        parts = {name: getattr(result, name)[known] for name in ("nll", "correct", "confidence", "row")}
        metrics |= scoring.token_metrics(replace(result, **parts), int(reference[inside].sum()))
        return Scores(metrics, {"loss": losses})
