"""From text to tensors: sequences of tokens with the range that is scored, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.errors import JobError
from kdbench.losses.tokens import IGNORE, shift_mask
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id


@dataclass
class TextBatch:
    """Rows of tokens, padded on the right."""

    input_ids: Tensor
    """(B, L) int64."""
    attention_mask: Tensor
    """(B, L) int64, 1 for tokens and 0 for padding."""
    labels: Tensor
    """(B, L) int64 aligned with ``input_ids``, -100 where ignored; classification: (B,) classes.

    Tagging: (B, L) tags at the position of each word, -1 where the word is unlabelled, -100 elsewhere.
    """
    index: Tensor
    """(B,) int64: row of the split, or -1 for rows that are not exactly those of the split (generated, changed)."""
    split: str = "train"
    """Split that ``index`` counts in."""
    logprobs: Tensor | None = None
    """(B, L) float32, generated rows only: log-probability of each response token when it was sampled, 0 elsewhere."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> TextBatch:
        if self.input_ids.device == torch.device(device):
            return self
        moved = {name: getattr(self, name).to(device) for name in ("input_ids", "attention_mask", "labels", "index")}
        logprobs = None if self.logprobs is None else self.logprobs.to(device)
        return replace(self, **moved, logprobs=logprobs)

    def rows(self, which: Tensor) -> TextBatch:
        """The rows that ``which`` (mask or indices) selects."""
        chosen = {name: getattr(self, name)[which] for name in ("input_ids", "attention_mask", "labels", "index")}
        return replace(self, **chosen, logprobs=None if self.logprobs is None else self.logprobs[which])

    @property
    def scored(self) -> Tensor:
        """(B, L-1) bool: position t is True where the token at t+1 is to be predicted (the shifted labels)."""
        return shift_mask(self.labels)[1]


@dataclass
class Sequences:
    """Encoded rows of one split; a row is start token, prompt, scored tokens."""

    ids: Tensor
    """(N, L) int32, padded on the right."""
    lengths: Tensor
    """(N,) int32: tokens of each row."""
    starts: Tensor
    """(N,) int32: first position that is a label (1 for plain text, the length of the prompt for instructions)."""
    pad: int
    labels: Tensor | None = None
    """(N,) int64 classes, classification only; (N, L) int64 tags, tagging only."""

    def __len__(self) -> int:
        return self.ids.shape[0]

    def batch(self, rows: Tensor, split: str = "train") -> TextBatch:
        """The rows as a batch, cut to its longest row."""
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        ids = self.ids[rows, :longest].long()
        positions = torch.arange(longest)
        present = positions < lengths[:, None]
        if self.labels is not None:
            labels = self.labels[rows]
            if labels.dim() == 2:
                labels = labels[:, :longest]
        else:
            labels = ids.masked_fill(~(present & (positions >= self.starts[rows, None])), IGNORE)
        return TextBatch(ids, present.long(), labels, rows.clone(), split)

    def prompt(self, row: int, tokens: int) -> list[int]:
        """The first ``tokens`` ids of a row."""
        ids: list[int] = self.ids[row, :tokens].tolist()
        return ids

    def batches(self, size: int, split: str) -> Iterator[TextBatch]:
        """All rows in order, ``size`` at a time."""
        for rows in torch.arange(len(self)).split(size):
            yield self.batch(rows, split)

    def take(self, count: int | None) -> Sequences:
        """The first ``count`` rows."""
        return self if count is None else self.rows(torch.arange(min(count, len(self))))

    def rows(self, which: Tensor) -> Sequences:
        """The chosen rows as a split of their own."""
        labels = None if self.labels is None else self.labels[which]
        return Sequences(self.ids[which], self.lengths[which], self.starts[which], self.pad, labels)

    def plain(self) -> Sequences:
        """The same rows with every token scored."""
        return replace(self, starts=torch.ones_like(self.starts))

    def __add__(self, other: Sequences) -> Sequences:
        width = max(self.ids.shape[1], other.ids.shape[1])
        padded = [
            torch.nn.functional.pad(part.ids, (0, width - part.ids.shape[1]), value=self.pad) for part in (self, other)
        ]
        return Sequences(
            torch.cat(padded),
            torch.cat([self.lengths, other.lengths]),
            torch.cat([self.starts, other.starts]),
            self.pad,
        )

    def save(self, folder: Path, name: str) -> None:
        tensors = {"ids": self.ids, "lengths": self.lengths, "starts": self.starts, "pad": torch.tensor(self.pad)}
        if self.labels is not None:
            tensors["labels"] = self.labels
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")

    @classmethod
    def read(cls, folder: Path, name: str) -> Sequences:
        tensors = load_file(folder / f"{name}.safetensors")
        return cls(tensors["ids"], tensors["lengths"], tensors["starts"], int(tensors["pad"]), tensors.get("labels"))


def pack(
    rows: Sequence[Sequence[int]], starts: Sequence[int], pad: int, labels: Sequence[int] | None = None
) -> Sequences:
    """Ragged rows of ids to one padded tensor."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    ids = torch.full((len(rows), int(lengths.max()) if len(rows) else 1), pad, dtype=torch.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
    classes = None if labels is None else torch.tensor(labels, dtype=torch.int64)
    return Sequences(ids, lengths, torch.tensor(starts, dtype=torch.int32), pad, classes)


def encode(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Ids of each text, without special tokens."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def encode_texts(texts: Sequence[str], tokenizer: Any) -> Sequences:
    """One row per text: the start token, then every token of the text, all of them scored."""
    rows = [[start_id(tokenizer), *ids] for ids in encode(texts, tokenizer)]
    return pack(rows, [1] * len(rows), pad_id(tokenizer))


def encode_pairs(
    prompts: Sequence[str], responses: Sequence[str], tokenizer: Any, length: int, *, too_long: str = "error"
) -> tuple[Sequences, list[int]]:
    """Prompts and responses to rows ``start, prompt, response, eos`` of which response and ``eos`` are scored.

    Prompt and response are tokenized apart, so that the prompt has the same tokens as at generation. Rows of more than
    ``length`` tokens are never cut: they raise ``JobError``, or are left out where ``too_long`` is ``"drop"``. Comes
    with the positions of the rows that were kept.
    """
    start, end, pad = start_id(tokenizer), tokenizer.eos_token_id, pad_id(tokenizer)
    rows, starts, kept = [], [], []
    for i, (prompt, response) in enumerate(zip(encode(prompts, tokenizer), encode(responses, tokenizer), strict=True)):
        row = [start, *prompt, *response, end]
        if len(row) > length:
            if too_long == "drop":
                continue
            raise JobError(f"an item has {len(row)} tokens, more than data.length = {length}: {prompts[i][:80]!r}...")
        rows.append(row)
        starts.append(1 + len(prompt))
        kept.append(i)
    if not rows:
        raise JobError(f"no item has at most data.length = {length} tokens")
    return pack(rows, starts, pad), kept


def encode_classes(texts: Sequence[str], labels: Sequence[int], tokenizer: Any, length: int) -> Sequences:
    """Texts to rows ``start, text`` of at most ``length`` tokens (longer ones are cut) with their classes."""
    start = start_id(tokenizer)
    rows = [[start, *ids][:length] for ids in encode(texts, tokenizer)]
    return pack(rows, [1] * len(rows), pad_id(tokenizer), labels)


def encode_tags(
    sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[int]], tokenizer: Any, length: int
) -> Sequences:
    """Sentences of words to rows ``start, tokens`` with the tag of each word at its first token that is no space.

    ``tags`` are class indices, or -1 for words without a label. Words are tokenized one by one, each with a space
    before it. A row of more than ``length`` tokens is a ``JobError``, never cut.
    """
    start, space = start_id(tokenizer), encode([" "], tokenizer)[0]
    vocabulary = sorted({word for sentence in sentences for word in sentence})
    pieces = dict(zip(vocabulary, encode([f" {word}" for word in vocabulary], tokenizer), strict=True))
    rows, places = [], []
    for sentence in sentences:
        row, place = [start], []
        for word in sentence:
            piece = pieces[word]
            place.append(len(row) + (len(space) if piece[: len(space)] == space else 0))
            row += piece
        if len(row) > length:
            raise JobError(f"a sentence has {len(row)} tokens, more than data.length = {length}: {' '.join(sentence)}")
        rows.append(row)
        places.append(place)
    packed = pack(rows, [1] * len(rows), pad_id(tokenizer))
    packed.labels = torch.full(packed.ids.shape, IGNORE, dtype=torch.int64)
    for i, (place, tag) in enumerate(zip(places, tags, strict=True)):
        packed.labels[i, place] = torch.tensor(tag)
    return packed


@dataclass(frozen=True)
class Chunk:
    """A stretch of a document that fills one row."""

    text: str
    domain: str
    document: str
    """Name of the document."""
    noise: str = ""
    """Kind of injected noise, empty for clean text."""


def chunk_documents(documents: Sequence[Any], tokenizer: Any, length: int) -> tuple[Sequences, list[Chunk]]:
    """Documents to rows ``start, tokens`` of ``length`` tokens; a rest that is shorter than half a row is dropped.

    Every token but the start token is scored. The text of a chunk is exactly what its tokens stand for, so that
    bits per byte and other tokenizers speak of the same text.
    """
    start, body = start_id(tokenizer), length - 1
    rows: list[list[int]] = []
    chunks: list[Chunk] = []
    for document in documents:
        encoding = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        for begin in range(0, len(ids), body):
            part = ids[begin : begin + body]
            if len(part) < max(1, body // 2):
                continue
            # up to the start of the next chunk's first token, so that no character is lost between chunks
            last = offsets[begin + len(part)][0] if begin + len(part) < len(ids) else len(document.text)
            text = document.text[offsets[begin][0] : last]
            rows.append([start, *part])
            chunks.append(Chunk(text, document.domain, document.meta.get("name", ""), document.meta.get("noise", "")))
    if not rows:
        raise JobError(f"the documents are too short for a single chunk of {length} tokens")
    return pack(rows, [1] * len(rows), pad_id(tokenizer)), chunks
