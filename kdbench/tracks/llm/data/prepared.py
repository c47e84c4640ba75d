"""The data of one task, ready to train and to evaluate on: rows, their tokens, and what a split knows about them.

Encoded splits are cache entries, keyed by everything that decides them, so that jobs only read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kdbench.cache import Cache
from kdbench.errors import JobError
from kdbench.tracks.llm import tokenizers
from kdbench.tracks.llm.data import classify, instruct, text
from kdbench.tracks.llm.data.classify import Example
from kdbench.tracks.llm.data.cpython import Document, rank
from kdbench.tracks.llm.data.encoding import Chunk, Sequences, chunk_documents, encode_classes, encode_pairs
from kdbench.tracks.llm.data.instruct import Item
from kdbench.tracks.llm.spec import (
    DATA_FORMAT,
    DocstringsData,
    HubInstructData,
    HubTextData,
    InstructData,
    LLMSpec,
    ReviewsData,
    TextData,
    split_fields,
)

Row = Item | Chunk | Example


@dataclass
class Split:
    """One split: tokens, and the rows that they come from."""

    sequences: Sequences
    folder: Path
    kind: type[Item] | type[Chunk] | type[Example]

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def rows(self) -> list[Any]:
        """Items, chunks or examples, in the order of the sequences."""
        with (self.folder / "rows.jsonl").open() as file:
            records = (json.loads(line) for line in file)
            if self.kind is Item:
                return [Item.from_json(record) for record in records]
            return [self.kind(**record) for record in records]

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens, first 16 digits: what cached teacher outputs are keyed by."""
        ids = self.sequences.ids.numpy().tobytes() + self.sequences.starts.numpy().tobytes()
        return hashlib.sha256(ids).hexdigest()[:16]


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of a fast tokenizer's whole definition, first 16 digits."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


class Prepared:
    """Splits of a task's data under one tokenizer."""

    def __init__(self, spec: LLMSpec, cache: Cache, tokenizer: Any = None) -> None:
        """``tokenizer`` is only given where it comes with the teacher."""
        self.spec, self.data, self.cache = spec, spec.data, cache
        self._splits: dict[str, Split] = {}
        self._documents: dict[str, list[Document]] | None = None
        self._classes: classify.ClassData | None = None
        self.tokenizer = tokenizer if tokenizer is not None else self.local_tokenizer(spec.tokenizer)

    # --- what there is --------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Splits: ``train``, ``val``, ``test``, and ``ood`` where the data have held-out families."""
        held_out = isinstance(self.data, InstructData) and self.data.ood > 0
        return ("train", "val", "test", "ood") if held_out else ("train", "val", "test")

    @property
    def kind(self) -> type[Item] | type[Chunk] | type[Example]:
        if isinstance(self.data, InstructData | HubInstructData):
            return Item
        return Chunk if isinstance(self.data, TextData | HubTextData) else Example

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty for generation tasks."""
        if isinstance(self.data, ReviewsData):
            return ("negative", "positive")
        if isinstance(self.data, DocstringsData):
            return self._class_data().classes
        return ()

    def split(self, name: str) -> Split:
        """A split by name; made on first use, read from the cache later."""
        if name not in self._splits:
            if name not in self.names:
                raise JobError(f"task {self.spec.name} has no split {name!r}; it has {', '.join(self.names)}")
            self._splits[name] = self._open(name)
        return self._splits[name]

    def documents(self, name: str = "train") -> list[Document]:
        """Documents of a split of a text task, before they are cut into chunks."""
        if isinstance(self.data, HubTextData):
            from kdbench.tracks.llm.hf import text_documents

            return text_documents(self.data, name)
        if not isinstance(self.data, TextData):
            raise JobError(f"task {self.spec.name} has items, not documents")
        if self._documents is None:
            self._documents = text.documents(self.data, self.cache)
        return self._documents[name]

    def local_tokenizer(self, name: str) -> Any:
        """The tokenizer ``bytes``, ``bpe512``, ``bpe1024`` or ``bpe2048`` of this training data."""
        if name not in tokenizers.SIZES:
            raise JobError(f"no tokenizer {name!r}; there are {', '.join(tokenizers.SIZES)}")
        return tokenizers.get(name, self._tokenizer_key(), self._tokenizer_texts, self.cache)

    def stage_rows(self, objective: str) -> Sequences:
        """Rows that a stage of a teacher or of an initialisation trains on.

        ``lm`` on instructions is every token of the items, and what the knowledge base says as plain text.
        """
        if isinstance(self.data, TextData) and self.data.noise:
            clean = self.data.model_copy(update={"noise": 0.0})
            return Prepared(self.spec.model_copy(update={"data": clean}), self.cache).stage_rows(objective)
        rows = self.split("train").sequences
        if objective != "lm" or not isinstance(self.data, InstructData):
            return rows
        statements = TextData(domains=("facts",), persons=self.data.persons, seed=self.data.seed)
        encoded, _ = chunk_documents(text.facts(statements), self.tokenizer, min(96, self.data.length))
        return rows.plain() + encoded

    # --- making ---------------------------------------------------------------------------------------------------

    def _key(self, name: str) -> Any:
        kept = split_fields(self.data, name)
        if isinstance(self.data, HubTextData | HubInstructData):
            from kdbench.tracks.llm.hf import data_digest

            kept["content"] = data_digest(self.data, name)
        return {"data": kept, "split": name, "tokenizer": tokenizer_digest(self.tokenizer), "format": DATA_FORMAT}

    def _open(self, name: str) -> Split:
        def make(folder: Path) -> None:
            sequences, rows = self._make(name)
            sequences.save(folder, "tokens")
            with (folder / "rows.jsonl").open("w") as file:
                for row in rows:
                    file.write(json.dumps(row.to_json() if isinstance(row, Item) else asdict(row)) + "\n")

        folder = self.cache.get("data", {"track": "llm", **self._key(name)}, make)
        return Split(Sequences.read(folder, "tokens"), folder, self.kind)

    def _make(self, name: str) -> tuple[Sequences, list[Any]]:
        data = self.data
        if isinstance(data, InstructData):
            items = instruct.held_out(data) if name == "ood" else instruct.generate(data, name, getattr(data, name))
            return self._encode_items(items, data.length, "error")
        if isinstance(data, HubInstructData):
            from kdbench.tracks.llm.hf import instruct_items

            sequences, kept = self._encode_items(instruct_items(data, name), data.length, "drop")
            return sequences, kept
        if isinstance(data, TextData | HubTextData):
            sequences, chunks = chunk_documents(self.documents(name), self.tokenizer, data.chunk)
            return choose(sequences, chunks, getattr(data, name), balanced=name != "train")
        examples = self._class_data().splits[name]
        texts, labels = [example.text for example in examples], [example.label for example in examples]
        return encode_classes(texts, labels, self.tokenizer, data.length), examples

    def _encode_items(self, items: list[Item], length: int, too_long: str) -> tuple[Sequences, list[Item]]:
        prompts, responses = [item.prompt for item in items], [item.response for item in items]
        sequences, kept = encode_pairs(prompts, responses, self.tokenizer, length, too_long=too_long)
        return sequences, [items[i] for i in kept]

    def _class_data(self) -> classify.ClassData:
        if self._classes is None:
            if isinstance(self.data, ReviewsData):
                self._classes = classify.reviews(self.data)
            elif isinstance(self.data, DocstringsData):
                self._classes = classify.docstrings(self.data, self.cache)
            else:
                raise JobError(f"task {self.spec.name} has no classes")
        return self._classes

    def _tokenizer_key(self) -> Any:
        data = self.data.decides_teacher()
        for name in ("chunk", "length"):  # they do not change the text that merges are learned from
            data.pop(name, None)
        return data

    def _tokenizer_texts(self) -> Iterable[str]:
        if isinstance(self.data, InstructData):
            items = instruct.generate(self.data, "train", self.data.train)
            return (item.text for item in items)
        if isinstance(self.data, TextData):
            # in a random order, so that a cap on the text leaves every domain in it
            clean = text.documents(self.data.model_copy(update={"noise": 0.0}), self.cache)["train"]
            documents = sorted(clean, key=lambda document: rank(document.meta["name"]))
            return (document.text for document in documents)
        return (example.text for example in self._class_data().splits["train"])


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
