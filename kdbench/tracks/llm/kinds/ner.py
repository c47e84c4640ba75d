"""Sentences with a tag per word: labelled in the source language, unlabelled in the target, which is what is scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.losses.centroids import class_sums
from kdbench.losses.logits import UNLABELLED
from kdbench.losses.prototypes import distance_ratio, unit
from kdbench.losses.tokens import IGNORE
from kdbench.task import Scores
from kdbench.tracks.llm.blocks.entities import by_sentence, span_metrics
from kdbench.tracks.llm.data.encoding import Sequences, encode_tags
from kdbench.tracks.llm.data.ner import TAGS, Sentence, sentences
from kdbench.tracks.llm.data.specs import NerData
from kdbench.tracks.llm.evaluate import expected_calibration_error
from kdbench.tracks.llm.kinds.base import Kind
from kdbench.tracks.llm.networks.models import token_nll, word_features


class Ner(Kind):
    """Two procedural languages.

    ``train`` is the labelled source sentences and then the target ones, which have no tags: their words are to be
    tagged, with -1 for the tag. Supervised training learns from the words that have a label; distillation from the
    teacher's opinion of all words. ``val`` and ``test`` are of the target, ``source`` is test data of the source, and
    ``gold`` is the target sentences of ``train`` with their tags; training can open none of these.
    """

    data: NerData
    row = Sentence
    names = ("train", "val", "test", "source", "gold")
    classes = TAGS
    tags = True
    open = ("train",)
    auto = "AutoModelForTokenClassification"

    def content(self, name: str) -> dict[str, Any]:
        """The number of rows, where it is a field that belongs to another split."""
        return {"sentences": self.data.test} if name == "source" else {}

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        data = self.data
        if name == "train":
            rows = sentences(data, "train", "source", data.train)
            target = sentences(data, "train", "target", data.unlabelled)
            rows += [Sentence(row.words, [], row.language) for row in target]
        elif name == "gold":
            rows = sentences(data, "train", "target", data.unlabelled)
        elif name == "source":
            rows = sentences(data, "test", "source", data.test)
        else:
            rows = sentences(data, name, "target", getattr(data, name))
        return self.encode_rows(rows, self.prepared.tokenizer), rows

    def encode_rows(self, rows: Any, tokenizer: Any) -> Sequences:
        tags = [[TAGS.index(tag) for tag in row.tags] or [UNLABELLED] * len(row.words) for row in rows]
        return encode_tags([row.words for row in rows], tags, tokenizer, self.data.length)

    def tokenizer_texts(self) -> Iterable[str]:
        for language, count in (("source", self.data.train), ("target", self.data.unlabelled)):
            for row in sentences(self.data, "train", language, count):
                yield f" {row.text}"  # as words are encoded

    def stage_rows(self, objective: str) -> Sequences:
        """The labelled rows."""
        rows = self.prepared.split("train").sequences
        return rows.rows(~unlabelled(rows))

    def validate(self, task: Any, model: nn.Module) -> dict[str, float]:
        """f1, precision, recall of exact spans, accuracy, nll and ece of words; target language."""
        return self.measured(task, model, "val")[0]

    def measure(self, task: Any, model: nn.Module) -> Scores:
        """As :meth:`validate`, with f1 by type, sentence_accuracy, agreement with the teacher, and f1 of the source."""
        metrics, predicted = self.measured(task, model, "test", types=True)
        rows = task.split("test").rows
        exact = np.array([guess == row.tags for guess, row in zip(predicted, rows, strict=True)], dtype=np.float64)
        _, taught = self.measured(task, task.teacher(), "test")
        same = [
            a == b for mine, theirs in zip(predicted, taught, strict=True) for a, b in zip(mine, theirs, strict=True)
        ]
        metrics |= {
            "sentence_accuracy": float(exact.mean()),
            "agreement": float(np.mean(same)),
            "f1_source": self.measured(task, model, "source")[0]["f1"],
        }
        return Scores(metrics, {"sentence_accuracy": exact})

    def measured(
        self, task: Any, model: nn.Module, name: str, *, types: bool = False
    ) -> tuple[dict[str, float], list[list[str]]]:
        """Metrics of a split that has tags, and the tags that the model gives each sentence."""
        split = self.prepared.split(name)
        words = all_words(task, model, split.sequences, name)
        logits, labels = words.logits, words.labels
        predicted = by_sentence([TAGS[i] for i in logits.argmax(-1).tolist()], words.row, len(split))
        metrics = span_metrics([sentence.tags for sentence in split.rows], predicted, types=types)
        confidence, guess = logits.softmax(-1).max(-1)
        correct = (guess == labels).double().numpy()
        metrics |= {
            "accuracy": float(correct.mean()),
            "nll": float(token_nll(logits, labels).mean()),
            "ece": expected_calibration_error(confidence.double().numpy(), correct),
        }
        return metrics, predicted


def unlabelled(sequences: Sequences) -> Tensor:
    """(N,) bool: rows whose words have no labels."""
    assert sequences.labels is not None
    return (sequences.labels == UNLABELLED).any(1)


@dataclass
class Words:
    """The M words of all sentences of a split in order, as a tagger sees them; on the CPU."""

    features: Tensor
    """(M, D) float32: what the classifier reads."""
    logits: Tensor
    """(M, C) float32."""
    labels: Tensor
    """(M,) int64 tags, -1 where a word is unlabelled."""
    row: Tensor
    """(M,) int64: sentence of each word."""


@torch.no_grad()
def all_words(task: Any, model: nn.Module, sequences: Sequences, split: str) -> Words:
    """Features and logits of a whole split; the model is put into evaluation mode."""
    model.eval()
    batches = sequences.batches(task.spec.evaluation.batch_size, split)
    seen = [word_features(model, batch.to(task.device)) for batch in batches]
    words = sequences.labels != IGNORE
    features, logits = (torch.cat([part[i].cpu() for part in seen]) for i in (0, 1))
    return Words(features, logits, sequences.labels[words], words.nonzero()[:, 0])


def language_distances(task: Any, model: nn.Module) -> dict[str, float]:
    """Cosine distances between the tags' mean features on test sentences of source and target; O is left out.

    As :func:`~kdbench.losses.prototypes.distance_ratio`, over the tags that both languages have; evaluation only.
    """
    means, present = [], torch.tensor([tag != "O" for tag in TAGS])
    for name in ("source", "test"):
        words = all_words(task, model, task.split(name).sequences, name)
        sums, counts = class_sums(unit(words.features), words.labels, len(TAGS))
        means.append(sums / counts.clamp(min=1)[:, None])
        present &= counts > 0
    return distance_ratio(means[0], means[1], present)
