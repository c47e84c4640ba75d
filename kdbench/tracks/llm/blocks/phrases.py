"""Spans of text that mean something together, and where they lie in sequences of tokens.

A chunker of patterns: sums and other expressions, numbers, names of several words, dotted or underscored identifiers,
and phrases. A phrase is a run of content words with the determiner, preposition or auxiliary before it (noun,
prepositional and verb phrases); function words and punctuation end it. It knows English function words and no grammar,
so that it needs no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.data.knowledge import words

DETERMINERS = words("a an the this that these those my your his her its our their each every any some no all")
PREPOSITIONS = words(
    "about above after against around as at before below between by during for from in inside into like near of off on "
    "onto out outside over per since through to toward under until upon with within without"
)
AUXILIARIES = words(
    "is are was were be been being am has have had having do does did will would shall should can could may might must"
)
OTHERS = words(
    "and or but nor not if then else when while where which who whom whose what how why than so because though "
    "although it he she they we you i me him them us there here also only just very"
)


def _any(choices: Sequence[str]) -> str:
    return rf"\b(?:{'|'.join(choices)})\b"


_NO_FUNCTION = rf"(?!{_any([*DETERMINERS, *PREPOSITIONS, *AUXILIARIES, *OTHERS])})"
_CONTENT = rf"\b{_NO_FUNCTION}[A-Za-z][A-Za-z'-]+"
_NAME = rf"\b{_NO_FUNCTION}(?-i:[A-Z])[\w']*"
_BEFORE = rf"(?:{_any(PREPOSITIONS)} )?(?:{_any(DETERMINERS)} )?|{_any(AUXILIARIES)} (?:not )?"
_PATTERN = re.compile(
    "|".join(
        (
            r"(?P<expression>\d+(?: ?[-+*/=] ?\d+)+)",
            r"(?P<number>\d+(?:[.,]\d+)*)",
            rf"(?P<name>{_NAME}(?: {_NAME})+)",
            r"(?P<identifier>\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|\b[A-Za-z]*_\w+)",
            rf"(?P<phrase>(?:{_BEFORE}){_CONTENT}(?: {_CONTENT})*)",
        )
    ),
    re.IGNORECASE | re.ASCII,
)


def spans(text: str) -> list[tuple[int, int, str]]:
    """Character ranges ``[start, end)`` of the spans of a text in order, none overlapping, with their kinds.

    >>> [(text[a:b], kind) for text in ["The old boat was sold by Nils Oake at 12."] for a, b, kind in spans(text)]
    [('The old boat', 'phrase'), ('was sold', 'phrase'), ('by Nils Oake', 'phrase'), ('12', 'number')]
    >>> [text[a:b] for text in ["9+3=12, 1+4+1=6 => 62"] for a, b, _ in spans(text)]
    ['9+3=12', '1+4+1=6', '62']
    """
    return [(match.start(), match.end(), str(match.lastgroup)) for match in _PATTERN.finditer(text)]


@lru_cache(maxsize=4096)
def _span_of_tokens(tokens: tuple[bytes, ...]) -> tuple[int, ...]:
    """Number of the span that each token's last byte lies in, -1 where it lies in none."""
    text = b"".join(tokens).decode("latin-1")  # a character a byte, whatever was generated
    owner = [-1] * len(text)
    for number, (start, end, _) in enumerate(spans(text)):
        owner[start:end] = [number] * (end - start)
    ends = torch.tensor([len(token) for token in tokens]).cumsum(0).tolist()
    return tuple(owner[end - 1] if token else -1 for token, end in zip(tokens, ends, strict=True))


def neighbours(batch: TextBatch, vocabulary: Sequence[bytes], *, within_spans: bool = True) -> Tensor:
    """(M,) int64: scored positions t, counted row-major over a batch, whose token and the next belong together.

    ``vocabulary`` has the bytes of each token (:func:`kdbench.tracks.llm.blocks.alignment.vocabulary_bytes`).
    Together are neighbours in one row, and, unless ``within_spans`` is false, in one span of it.
    """
    scored = batch.scored.cpu()
    targets = batch.labels[:, 1:].cpu()
    found, offset = [], 0
    for mask, row in zip(scored, targets, strict=True):
        tokens = row[mask].tolist()
        if within_spans:
            owner = _span_of_tokens(tuple(vocabulary[token] for token in tokens))
        else:
            owner = (0,) * len(tokens)
        found += [offset + t for t in range(len(tokens) - 1) if owner[t] == owner[t + 1] >= 0]
        offset += len(tokens)
    return torch.tensor(found, dtype=torch.int64, device=batch.labels.device)
