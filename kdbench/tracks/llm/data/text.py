"""Documents of the text tasks: real text of CPython, procedural facts and arithmetic, injected noise, splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdbench.cache import Cache
from kdbench.errors import JobError
from kdbench.tracks.llm.data import cpython
from kdbench.tracks.llm.data.cpython import Document, rank
from kdbench.tracks.llm.data.knowledge import Knowledge
from kdbench.tracks.llm.data.specs import TextData

HELD_BACK = 0.05
"""Share of the bytes of each domain that validation gets, and test as much again."""

BOILERPLATE = (
    "All rights reserved. No part of this text may be used without notice. This notice must stay in all copies. "
    "The text is given as is, without warranty of any kind. See the file for the terms. "
)


def documents(data: TextData, cache: Cache) -> dict[str, list[Document]]:
    """Documents by split (``train``, ``val``, ``test``); a document is in one split only, noise in ``train`` alone."""
    splits: dict[str, list[Document]] = {"train": [], "val": [], "test": []}
    for domain in data.domains:
        chosen, size = [], 0
        for document in _domain(domain, data, cache):
            if size >= data.bytes_per_domain:
                break
            chosen.append(document)
            size += len(document.text)
        for name, part in split(chosen).items():
            splits[name] += part
    if data.noise:
        splits["train"] = inject_noise(splits["train"], data.noise, data.seed)
    return splits


def split(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """90/5/5 % by bytes, whole documents only, in a fixed random order by name; every split gets at least one."""
    order = sorted(documents, key=lambda document: rank("split " + document.meta["name"]))
    budget = HELD_BACK * sum(len(document.text) for document in order)
    parts: dict[str, list[Document]] = {"test": [], "val": [], "train": []}
    for document in order:
        name = next(
            (
                name
                for name in ("test", "val")
                if not parts[name] or sum(len(d.text) for d in parts[name]) + len(document.text) <= budget
            ),
            "train",
        )
        parts[name].append(document)
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise JobError(f"{len(order)} documents leave none for {', '.join(empty)}; raise data.bytes_per_domain")
    return parts


def _domain(domain: str, data: TextData, cache: Cache) -> list[Document]:
    if domain == "facts":
        return facts(data)
    if domain == "arith":
        return arithmetic(data)
    rows = cpython.load(cache, data.digest)[domain]
    documents = [Document(row["text"], domain, {"name": f"{domain}/{row['name']}"}) for row in rows]
    return sorted(documents, key=lambda document: rank(document.meta["name"]))


def facts(data: TextData) -> list[Document]:
    """Paragraphs about the persons of the knowledge base, in new words each time, ten persons a document."""
    knowledge = Knowledge.make(data.persons, data.seed)
    rng = np.random.default_rng([data.seed, 0xFAC75])
    documents, size, number = [], 0, 0
    wanted = min(data.bytes_per_domain, 600 * data.persons + 2_000)
    while size < wanted:
        people = rng.integers(data.persons, size=10)
        text = "\n".join(knowledge.document(int(person), rng) for person in people)
        documents.append(Document(text, "facts", {"name": f"facts/{number}"}))
        size, number = size + len(text), number + 1
    return documents


def arithmetic(data: TextData) -> list[Document]:
    """Sheets of forty sums and differences of numbers below 100."""
    rng = np.random.default_rng([data.seed, 0xA217])
    documents, size, number = [], 0, 0
    wanted = min(data.bytes_per_domain, 200_000)
    while size < wanted:
        lines = []
        for a, b, minus in zip(
            rng.integers(100, size=40), rng.integers(100, size=40), rng.random(40) < 0.5, strict=True
        ):
            high, low = max(a, b), min(a, b)
            lines.append(f"{high} - {low} = {high - low}" if minus else f"{a} + {b} = {a + b}")
        text = "\n".join(lines)
        documents.append(Document(text, "arith", {"name": f"arith/{number}"}))
        size, number = size + len(text), number + 1
    return documents


def inject_noise(documents: Sequence[Document], share: float, seed: int) -> list[Document]:
    """Replace a share of the documents: half by their own words shuffled, half by boilerplate of the same length.

    ``meta["noise"]`` says ``shuffled`` or ``boilerplate``; clean documents have no such key.
    """
    rng = np.random.default_rng([seed, 0x2015E])
    noisy = []
    for document in documents:
        kind = rng.random()
        if kind >= share:
            noisy.append(document)
            continue
        if kind < share / 2:
            words = document.text.split()
            text, name = " ".join(words[i] for i in rng.permutation(len(words))), "shuffled"
        else:
            text, name = (
                (BOILERPLATE * (len(document.text) // len(BOILERPLATE) + 1))[: len(document.text)],
                "boilerplate",
            )
        noisy.append(Document(text, document.domain, {**document.meta, "noise": name}))
    return noisy
