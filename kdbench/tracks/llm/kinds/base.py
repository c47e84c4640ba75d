"""What every kind of data has to say, and what all language modelling has in common."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from kdbench.errors import JobError
from kdbench.task import Scores
from kdbench.tracks.llm.data.cpython import Document
from kdbench.tracks.llm.data.encoding import Sequences
from kdbench.tracks.llm.evaluate import forced

if TYPE_CHECKING:
    from kdbench.tracks.llm.data.prepared import Prepared
    from kdbench.tracks.llm.task import LLMTask


@dataclass
class Split:
    """One split: tokens, and the rows that they come from."""

    sequences: Sequences
    folder: Path
    kind: type[Any]
    """Type of the rows."""

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def rows(self) -> list[Any]:
        """Items, chunks, examples, ..., in the order of the sequences."""
        read = getattr(self.kind, "from_json", None) or (lambda record: self.kind(**record))
        with (self.folder / "rows.jsonl").open() as file:
            return [read(json.loads(line)) for line in file]

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens, first 16 digits: what cached teacher outputs are keyed by."""
        ids = self.sequences.ids.numpy().tobytes() + self.sequences.starts.numpy().tobytes()
        return hashlib.sha256(ids).hexdigest()[:16]


class Kind:
    """One kind of data, bound to the data of one task."""

    row: ClassVar[type[Any]]
    """Type of a row: a dataclass of what JSON has, or with ``to_json`` and ``from_json``."""
    sequences: ClassVar[type[Sequences]] = Sequences
    """Type of the encoded rows of a split."""
    names: tuple[str, ...] = ("train", "val", "test")
    """Splits that there are."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty for generation tasks."""
    classifies: ClassVar[bool] = False
    """Whether models give one vector of class logits per row, and batches carry one class per row."""
    tags: ClassVar[bool] = False
    """Whether models give class logits per token, and batches carry the tags of words."""
    open: ClassVar[tuple[str, ...]] = ("train", "val")
    """Splits that training may read; the others are reached in evaluation alone."""
    auto: ClassVar[str] = "AutoModelForCausalLM"
    """Class of transformers that reads a saved model."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.data, self.cache = prepared, prepared.data, prepared.cache

    # --- data -----------------------------------------------------------------------------------------------------

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        """Tokens and rows of a split."""
        raise NotImplementedError

    def content(self, name: str) -> dict[str, Any]:
        """What decides a split beside the fields of its data: digests of files."""
        return {}

    def documents(self, name: str) -> list[Document]:
        """Documents of a split before they are cut into chunks."""
        raise JobError(f"task {self.prepared.spec.name} has no documents")

    def tokenizer_texts(self) -> Iterable[str]:
        """Training text that the merges of a tokenizer are learned from."""
        raise NotImplementedError

    def stage_rows(self, objective: str) -> Sequences:
        """Rows that a stage of a teacher or of an initialisation trains on."""
        return self.prepared.split("train").sequences

    def prepare(self, task: LLMTask) -> None:
        """Networks of a task of this kind that are made before its jobs, beside teacher and initial student."""

    def encode_rows(self, rows: Sequence[Any], tokenizer: Any) -> Sequences:
        """Rows under another tokenizer, one sequence each."""
        raise JobError(f"models of task {self.prepared.spec.name} have the tokenizer of the task")

    def prompt_tokens(self, sequences: Sequences, row: int) -> int:
        """Leading tokens of a row that a model is given to continue."""
        raise JobError(f"task {self.prepared.spec.name} has no prompts")

    # --- models ---------------------------------------------------------------------------------------------------

    def validate(self, task: LLMTask, model: nn.Module) -> dict[str, float]:
        """Metrics on the validation data; the model is in evaluation mode or put into it."""
        raise NotImplementedError

    def measure(self, task: LLMTask, model: nn.Module) -> Scores:
        """All metrics on the test data, and the values of each example."""
        raise NotImplementedError

    def same_tokens(self, task: LLMTask, split: Split, tokenizer: Any) -> Sequences:
        """Tokens of a split, encoded anew where the model has a tokenizer of its own."""
        return split.sequences if tokenizer is task.tokenizer else self.encode_rows(split.rows, tokenizer)


class LanguageKind(Kind):
    """Data that a causal language model predicts token by token."""

    def validate(self, task: LLMTask, model: nn.Module) -> dict[str, float]:
        """loss (nats per token), perplexity, token_accuracy."""
        sequences = self.same_tokens(task, self.prepared.split("val"), task.tokenizer_of(model))
        result = forced(model, sequences.batches(task.spec.evaluation.batch_size, "val"), task.device)
        return {
            "loss": result.loss,
            "perplexity": math.exp(result.loss),
            "token_accuracy": float(result.correct.mean()),
        }


def as_json(row: Any) -> dict[str, Any]:
    """A row as JSON."""
    record: dict[str, Any] = row.to_json() if hasattr(row, "to_json") else asdict(row)
    return record
