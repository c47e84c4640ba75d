"""The data of one task, ready to train and to evaluate on: splits of rows and their tokens.

Encoded splits are cache entries, keyed by everything that decides them, so that jobs only read them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kdbench.cache import Cache
from kdbench.errors import JobError
from kdbench.tracks.llm.data.encoding import Sequences
from kdbench.tracks.llm.kinds import load_kind
from kdbench.tracks.llm.kinds.base import Split, as_json
from kdbench.tracks.llm.networks import tokenizers
from kdbench.tracks.llm.spec import DATA_FORMAT, LLMSpec, split_fields


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of a fast tokenizer's whole definition, first 16 digits."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


class Prepared:
    """Splits of a task's data under one tokenizer; what they are is said by :attr:`kind`."""

    def __init__(self, spec: LLMSpec, cache: Cache, tokenizer: Any = None) -> None:
        """``tokenizer`` is only given where it comes with the teacher."""
        self.spec, self.data, self.cache = spec, spec.data, cache
        self.kind = load_kind(spec.kinds[spec.data.kind])(self)
        self._splits: dict[str, Split] = {}
        self.tokenizer = tokenizer if tokenizer is not None else self.local_tokenizer(spec.tokenizer)

    def of(self, data: Any) -> Prepared:
        """The same task with other data."""
        return Prepared(self.spec.model_copy(update={"data": data}), self.cache)

    def split(self, name: str) -> Split:
        """A split by name; made on first use, read from the cache later."""
        if name not in self._splits:
            if name not in self.kind.names:
                raise JobError(f"task {self.spec.name} has no split {name!r}; it has {', '.join(self.kind.names)}")
            self._splits[name] = self._open(name)
        return self._splits[name]

    def stage_rows(self, objective: str) -> Sequences:
        """Rows that a stage of a teacher or of an initialisation trains on."""
        return self.kind.stage_rows(objective)

    def local_tokenizer(self, name: str) -> Any:
        """The tokenizer ``bytes``, ``chars``, ``bpe512``, ``bpe1024`` or ``bpe2048`` of this training data."""
        if name not in tokenizers.SIZES:
            raise JobError(f"no tokenizer {name!r}; there are {', '.join(tokenizers.SIZES)}")
        decides = self.data.decides_teacher()
        for field in ("chunk", "length"):  # they do not change the text that merges are learned from
            decides.pop(field, None)
        return tokenizers.get(name, decides, self.kind.tokenizer_texts, self.cache)

    def _open(self, name: str) -> Split:
        def make(folder: Path) -> None:
            sequences, rows = self.kind.make(name)
            sequences.save(folder, "tokens")
            with (folder / "rows.jsonl").open("w") as file:
                for row in rows:
                    file.write(json.dumps(as_json(row)) + "\n")

        key = {
            "track": "llm",
            "data": {**split_fields(self.data, name), **self.kind.content(name)},
            "split": name,
            "tokenizer": tokenizer_digest(self.tokenizer),
            "format": DATA_FORMAT,
        }
        folder = self.cache.get("data", key, make)
        return Split(self.kind.sequences.read(folder, "tokens"), folder, self.kind.row)
