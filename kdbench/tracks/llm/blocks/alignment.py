"""Two tokenizers on the same text: the bytes of a token, spans that say the same, and one vocabulary for another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.convert_slow_tokenizer import bytes_to_unicode

from kdbench.errors import JobError
from kdbench.tracks.llm.data.encoding import TextBatch, encode
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id

SPECIAL = b"\xff\xff"
"""What a special token stands for: bytes that no UTF-8 text contains, and no token but a special one."""
BLANKS = (b" ", b"\t", b"\n")


def vocabulary_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes of each token by its id; special tokens are :data:`SPECIAL`.

    For byte-level tokenizers (GPT-2 and its relatives) and for those with ``▁`` for a space and ``<0x0A>`` for a byte
    (SentencePiece). Raises ``JobError`` for others: what their tokens stand for is not known byte by byte.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    layout = json.dumps([parts.get("pre_tokenizer"), parts.get("decoder")])
    special, found = set(tokenizer.all_special_ids), []
    byte_level = '"ByteLevel"' in layout
    if not byte_level and "\\u2581" not in layout and '"Metaspace"' not in layout:
        raise JobError("tokens can be aligned byte by byte for byte-level and SentencePiece tokenizers only")
    table = {character: byte for byte, character in bytes_to_unicode().items()}
    for number, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if number in special or token is None:
            found.append(SPECIAL)
        elif byte_level and all(character in table for character in token):
            found.append(bytes(table[character] for character in token))
        elif not byte_level and len(token) == 6 and token.startswith("<0x"):
            found.append(bytes([int(token[3:5], 16)]))
        else:
            found.append(token.replace("\u2581", " ").encode())
    return found


def starts_word(vocabulary: Sequence[bytes]) -> Tensor:
    """(V,) bool: tokens that end what came before them: they begin with a blank, or are special."""
    return torch.tensor([token[:1] in BLANKS or token == SPECIAL for token in vocabulary])


@dataclass
class Alignment:
    """Spans of two tokenisations of the same texts that stand for the same bytes; C chunks, in the order of the rows.

    Positions count the scored positions of a batch, row-major, as
    :func:`kdbench.tracks.llm.networks.models.scored_logits`.
    """

    chunks: tuple[Tensor, Tensor]
    """(N_a,), (N_b,) int64: the chunk of each scored token."""
    after: tuple[Tensor, Tensor]
    """(C,), (C,) int64: the position that has read the whole chunk, -1 where the row ends with it."""
    size: Tensor
    """(C,) int64 bytes; a special token counts as one."""
    ends_row: Tensor
    """(C,) bool."""
    closed: Tensor
    """(C,) bool: the last token is special, so that the chunk cannot go on."""

    def __len__(self) -> int:
        return len(self.size)

    def sums(self, side: int, values: Tensor) -> Tensor:
        """(C,) sums over each chunk's tokens of values (N,) of one side."""
        return values.new_zeros(len(self)).index_add(0, self.chunks[side], values)

    def merged(self, ends: Tensor) -> Alignment:
        """Neighbouring chunks joined up to and including each that ``ends`` (C,) names; rows always end a chunk."""
        ends = ends | self.ends_row
        group = ends.long().cumsum(0) - ends.long()
        size = self.size.new_zeros(int(ends.sum())).index_add(0, group, self.size)
        chunks = (group[self.chunks[0]], group[self.chunks[1]])
        after = (self.after[0][ends], self.after[1][ends])
        return Alignment(chunks, after, size, self.ends_row[ends], self.closed[ends])


def boundaries(a: Sequence[bytes], b: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """For each place where both token streams have told the same bytes: tokens of ``a`` and of ``b`` up to it.

    Blanks that only one tokenizer puts before the first word count as part of the other's first token. Raises
    ``JobError`` where the streams differ.

    >>> [ends.tolist() for ends in boundaries([b"ab", b"c", b"d"], [b"a", b"bc", b"d"])]
    [[2, 3], [2, 3]]
    """
    text_a, text_b = b"".join(a), b"".join(b)
    lengths = [np.array([len(token) for token in tokens], dtype=np.int64) for tokens in (a, b)]
    if text_a != text_b:
        if text_a.lstrip(b" ") != text_b.lstrip(b" ") or not a or not b:
            raise JobError(f"the tokenizers do not tell the same bytes: {text_a[:60]!r}... and {text_b[:60]!r}...")
        lengths[0][0] += max(0, len(text_b) - len(text_a))
        lengths[1][0] += max(0, len(text_a) - len(text_b))
    ends_a, ends_b = (part.cumsum() for part in lengths)
    common = np.intersect1d(ends_a, ends_b)
    # to the right of tokens without bytes, so that each token is in exactly one chunk
    return np.searchsorted(ends_a, common, side="right"), np.searchsorted(ends_b, common, side="right")


def chunk_align(
    batches: tuple[TextBatch, TextBatch], vocabularies: tuple[Sequence[bytes], Sequence[bytes]]
) -> Alignment:
    """The finest common chunks of the scored tokens of two batches with the same rows under two tokenizers."""
    tokens: list[list[list[int]]] = []
    for batch in batches:
        scored, ids = batch.scored.cpu().numpy(), batch.input_ids[:, 1:].cpu().numpy()
        tokens.append([row[mask].tolist() for row, mask in zip(ids, scored, strict=True)])
    chunks: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    after: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    sizes, ends_row, closed = [], [], []
    count, passed = 0, [0, 0]
    for rows in zip(*tokens, strict=True):
        spelt = [[words[i] for i in row] for row, words in zip(rows, vocabularies, strict=True)]
        if not spelt[0] and not spelt[1]:
            continue
        ends = boundaries(*spelt)
        for side in (0, 1):
            lengths = np.diff(ends[side], prepend=0)
            chunks[side].append(np.repeat(np.arange(count, count + len(lengths)), lengths))
            after[side].append(np.where(ends[side] < len(rows[side]), passed[side] + ends[side], -1))
            passed[side] += len(rows[side])
        told = np.concatenate([[0], np.cumsum([1 if token == SPECIAL else len(token) for token in spelt[0]])])[ends[0]]
        sizes.append(np.diff(told, prepend=0))
        ends_row.append(np.arange(len(told)) == len(told) - 1)
        closed.append(np.array([spelt[0][end - 1] == SPECIAL for end in ends[0]]))
        count += len(told)
    device = batches[0].input_ids.device

    def joined(parts: list[np.ndarray], kind: type) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(kind)).to(device)

    return Alignment(
        (joined(chunks[0], np.int64), joined(chunks[1], np.int64)),
        (joined(after[0], np.int64), joined(after[1], np.int64)),
        joined(sizes, np.int64),
        joined(ends_row, np.bool_),
        joined(closed, np.bool_),
    )


# --- vocabularies ----------------------------------------------------------------------------------------------------


def spelling(old: Any, new: Any) -> list[list[int]]:
    """For each token of ``new`` the tokens of ``old`` that spell it; special tokens have that of the same role.

    Bytes that are no text by themselves are spelt byte by byte. Raises ``JobError`` where ``old`` cannot spell a token.
    """
    words = vocabulary_bytes(new)
    known = {word: number for number, word in reversed(list(enumerate(vocabulary_bytes(old)))) if word != SPECIAL}
    roles = {new.eos_token_id: old.eos_token_id, pad_id(new): pad_id(old), start_id(new): start_id(old)}
    found: list[list[int]] = []
    for number, word in enumerate(words):
        if number in roles:
            found.append([int(roles[number])])
        elif word == SPECIAL:
            found.append([int(old.eos_token_id)])
        elif word in known:
            found.append([known[word]])
        else:
            try:
                found.append(encode([word.decode()], old)[0])
            except UnicodeDecodeError:
                missing = [byte for byte in word if bytes([byte]) not in known]
                if missing:
                    raise JobError(f"the old tokenizer has no token for the bytes {bytes(missing)!r}") from None
                found.append([known[bytes([byte])] for byte in word])
    return found


@torch.no_grad()
def transplant(model: nn.Module, old: Any, new: Any) -> nn.Module:
    """Give ``model``, in place, the vocabulary of ``new``; each embedding is the mean of those that spelt the token.

    Fast vocabulary transfer (Gee et al., EMNLP 2022), for the input and, where it is not tied, the output embedding.
    """
    pieces = spelling(old, new)
    flat = torch.tensor([number for piece in pieces for number in piece])
    owner = torch.repeat_interleave(torch.arange(len(pieces)), torch.tensor([len(piece) for piece in pieces]))
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    means = []
    for layer in layers:
        weight = layer.weight.detach()
        total = weight.new_zeros(len(pieces), weight.shape[1]).index_add(
            0, owner.to(weight.device), weight[flat.to(weight.device)]
        )
        counts = torch.bincount(owner, minlength=len(pieces)).to(weight)
        means.append(total / counts[:, None])
    model.resize_token_embeddings(len(pieces), mean_resizing=False)  # type: ignore[operator]
    for layer, mean in zip(
        (model.get_input_embeddings(), model.get_output_embeddings()),
        means,
        strict=True,  # type: ignore[operator]
    ):
        layer.weight.copy_(mean)
    ids = {"pad_token_id": pad_id(new), "bos_token_id": start_id(new), "eos_token_id": new.eos_token_id}
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            for name, value in ids.items():
                setattr(config, name, value)
    return model


def edit_distances(word: bytes, codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(V,) Levenshtein distances of ``word`` to V words: ``codes`` (V, L) bytes, padded by -1, of ``lengths`` (V,)."""
    row = np.broadcast_to(np.arange(codes.shape[1] + 1), (len(codes), codes.shape[1] + 1)).copy()
    for i, byte in enumerate(word, 1):
        above, row = row, np.empty_like(row)
        row[:, 0] = i
        for j in range(1, row.shape[1]):
            change = above[:, j - 1] + (codes[:, j - 1] != byte)
            row[:, j] = np.minimum(change, np.minimum(above[:, j], row[:, j - 1]) + 1)
    return row[np.arange(len(codes)), lengths]


def nearest_tokens(old: Any, new: Any) -> Tensor:
    """(V_new,) int64: for each token of ``new`` the token of ``old`` with the least edit distance of their bytes.

    The first where several are as near; special tokens have that of the same role. The vocabulary map of minimum-edit-
    distance logit alignment (Wan et al., ICLR 2024).
    """
    spelt, words = spelling(old, new), vocabulary_bytes(new)
    theirs = [b"" if word == SPECIAL else word for word in vocabulary_bytes(old)]
    lengths = np.array([len(word) for word in theirs])
    codes = np.full((len(theirs), int(lengths.max())), -1)
    for number, word in enumerate(theirs):
        codes[number, : len(word)] = list(word)
    usable = lengths > 0
    found = []
    for word, piece in zip(words, spelt, strict=True):
        if len(piece) == 1:
            found.append(piece[0])
            continue
        distance = np.where(usable, edit_distances(word, codes, lengths), np.iinfo(np.int64).max)
        found.append(int(distance.argmin()))
    return torch.tensor(found)
