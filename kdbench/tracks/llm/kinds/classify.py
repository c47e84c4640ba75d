"""Texts with one class each, for encoders with a linear head."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from torch import nn

from kdbench.task import Scores
from kdbench.tracks.llm.data import classify
from kdbench.tracks.llm.data.classify import ClassData, Example
from kdbench.tracks.llm.data.encoding import Sequences, encode_classes
from kdbench.tracks.llm.data.specs import DocstringsData, ReviewsData
from kdbench.tracks.llm.evaluate import class_logits, class_metrics
from kdbench.tracks.llm.kinds.base import Kind


class Classes(Kind):
    """Rows of a text and its class; subclasses say where they come from."""

    row = Example
    classifies = True
    auto = "AutoModelForSequenceClassification"

    @cached_property
    def class_data(self) -> ClassData:
        """Examples by split, and the names of the classes."""
        raise NotImplementedError

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.class_data.classes

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        examples = self.class_data.splits[name]
        texts, labels = [example.text for example in examples], [example.label for example in examples]
        return encode_classes(texts, labels, self.prepared.tokenizer, self.data.length), examples

    def tokenizer_texts(self) -> Iterable[str]:
        return (example.text for example in self.class_data.splits["train"])

    def validate(self, task: Any, model: nn.Module) -> dict[str, float]:
        """accuracy, macro_f1, nll, ece."""
        sequences = self.prepared.split("val").sequences
        assert sequences.labels is not None
        return class_metrics(class_logits(model, sequences, "val", task.device), sequences.labels)

    def measure(self, task: Any, model: nn.Module) -> Scores:
        """accuracy, macro_f1, nll, ece, and agreement with the teacher."""
        sequences = task.split("test").sequences
        assert sequences.labels is not None
        logits = class_logits(model, sequences, "test", task.device)
        metrics = class_metrics(logits, sequences.labels)
        teacher = class_logits(task.teacher(), sequences, "test", task.device)
        predicted = logits.argmax(dim=-1)
        metrics["agreement"] = float((predicted == teacher.argmax(dim=-1)).double().mean())
        return Scores(metrics, {"accuracy": (predicted == sequences.labels).double().numpy()})


class Reviews(Classes):
    """Procedural reviews with a hidden topic."""

    data: ReviewsData
    classes = ("negative", "positive")

    @cached_property
    def class_data(self) -> ClassData:
        return classify.reviews(self.data)


class Docstrings(Classes):
    """Docstrings of the standard library by module."""

    data: DocstringsData

    @cached_property
    def class_data(self) -> ClassData:
        return classify.docstrings(self.data, self.cache)
