"""Texts of several lengths: windows that end in the same tokens, and pass keys that have to be found again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdbench.errors import JobError
from kdbench.tracks.llm.data.cpython import Document, rank
from kdbench.tracks.llm.data.encoding import Chunk, Sequences, pack
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id

LETTERS = "αβγδεζηθικλμνξο"
"""What keys are made of: letters that no other text has, so that a small network can tell where a key is."""
STATEMENT = "\nThe key is{key}. Keep it.\n"
QUESTION = "\nWhat is the key? The key is"


@dataclass(frozen=True)
class Probe(Chunk):
    """A text of a given length of which only the end is scored; plain chunks have the length 0."""

    length: int = 0
    """Tokens, the start token and the scored ones included."""
    response: str = ""
    """What is scored; ``text`` is what comes before."""


@dataclass(frozen=True)
class Encoded:
    """A document, its tokens, and where each of them begins in its text; one entry more for the end."""

    document: Document
    ids: list[int]
    begins: list[int]

    def text(self, first: int, last: int) -> str:
        """Text of the tokens from ``first`` to before ``last``."""
        return self.document.text[self.begins[first] : self.begins[last]]


LONG = 8
"""Characters for each token that a stretch of joined documents has at least."""


def joined(documents: Sequence[Document], characters: int) -> Iterator[Document]:
    """Documents, the short ones one after another with others of their domain until they are long enough."""
    open_ones: dict[str, list[Document]] = {}
    for document in documents:
        parts = open_ones.setdefault(document.domain, [])
        parts.append(document)
        if sum(len(part.text) for part in parts) >= characters:
            yield joint(open_ones.pop(document.domain))
    yield from (joint(parts) for parts in open_ones.values())


def joint(parts: Sequence[Document]) -> Document:
    """Several documents as one, with the name of the first."""
    return Document("\n\n".join(part.text for part in parts), parts[0].domain, {"name": parts[0].meta["name"]})


def encoded(documents: Sequence[Document], tokenizer: Any, least: int) -> Iterator[Encoded]:
    """Joined documents of at least ``least`` tokens."""
    for document in joined(documents, LONG * least):
        encoding = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if len(encoding["input_ids"]) >= least:
            begins = [begin for begin, _ in encoding["offset_mapping"]]
            yield Encoded(document, encoding["input_ids"], [*begins, len(document.text)])


def windows(
    documents: Sequence[Document], tokenizer: Any, lengths: Sequence[int], stride: int, count: int
) -> tuple[Sequences, list[Probe]]:
    """``count`` places, evenly from the domains; at each one row a length, all with the same last ``stride`` tokens.

    A row is the start token and the tokens before and at the place, so that what differs is the context alone. Raises
    ``JobError`` where no document is long enough.
    """
    longest = max(lengths)
    places: dict[str, list[tuple[Encoded, int]]] = {}
    for one in encoded(documents, tokenizer, longest - 1):
        for end in range(longest - 1, len(one.ids) + 1, max(stride, longest // 2)):
            places.setdefault(one.document.domain, []).append((one, end))
    if not places:
        raise JobError(f"no document has {longest - 1} tokens")
    queues = [
        sorted(queue, key=lambda place: rank(f"{place[0].document.meta['name']} {place[1]}"))
        for _, queue in sorted(places.items())
    ]
    turns = sorted(((turn, place) for queue in queues for turn, place in enumerate(queue)), key=lambda pair: pair[0])
    chosen = [place for _, place in turns[:count]]
    rows, starts, probes = [], [], []
    for length in sorted(lengths):
        for one, end in chosen:
            first, scored = end - length + 1, end - stride
            rows.append([start_id(tokenizer), *one.ids[first:end]])
            starts.append(length - stride)
            document, name = one.document, one.document.meta["name"]
            probes.append(
                Probe(one.text(first, scored), document.domain, name, length=length, response=one.text(scored, end))
            )
    return pack(rows, starts, pad_id(tokenizer)), probes


def passkeys(
    documents: Sequence[Document], tokenizer: Any, length: int, count: int, letters: int, rng: np.random.Generator
) -> tuple[list[list[int]], list[int], list[Probe]]:
    """``count`` rows of ``length`` tokens: a key somewhere in real text, and at the end the question what it was.

    Rows of ids with the start token, where the answer begins in each, and the probes. Raises ``JobError`` where the
    documents or the length are too short.
    """
    rows, starts, probes = [], [], []
    sources = list(encoded(documents, tokenizer, length))
    if not sources:
        raise JobError(f"no document has {length} tokens")

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    question = tokens(QUESTION)
    for number in range(count):
        key = " " + "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=letters))
        statement, answer = tokens(STATEMENT.format(key=key)), tokens(key)
        fill = length - 1 - len(statement) - len(question) - len(answer)
        if fill < 1:
            raise JobError(f"a pass key needs {length - fill} tokens and more, not {length}")
        source = sources[int(rng.integers(len(sources)))]
        begin = int(rng.integers(len(source.ids) - fill + 1))
        middle = begin + int(rng.integers(fill + 1))
        before, after = source.ids[begin:middle], source.ids[middle : begin + fill]
        rows.append([start_id(tokenizer), *before, *statement, *after, *question, *answer])
        starts.append(length - len(answer))
        text = source.text(begin, middle) + STATEMENT.format(key=key) + source.text(middle, begin + fill) + QUESTION
        probes.append(Probe(text, "passkey", f"passkey/{length}/{number}", length=length, response=key))
    return rows, starts, probes
