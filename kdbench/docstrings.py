"""Docstrings of methods as text for people."""

from __future__ import annotations

import re
from inspect import cleandoc
from textwrap import dedent

SENTENCES = 3
"""What a mechanism is told in."""
_ABBREVIATED = "".join(rf"(?<!{word}\.)" for word in (r"et al", r"e\.g", r"i\.e", r"[Ee]q", r"[Ss]ec", r"\b[A-Z]"))
_END = re.compile(rf"(?<=[.!?]){_ABBREVIATED}\s+(?=[A-Z(`\"])")
"""Where a sentence ends and the next begins."""
_SOURCE = re.compile(r".{,200}\b(19|20)\d\d\)?\.")
"""A sentence that says who wrote the paper, and when."""


def paragraphs(doc: str) -> list[tuple[str, str]]:
    """Blocks of a docstring: ``text`` whose lines flow, and ``code`` (indented, such as formulas) as it is written."""
    blocks = []
    for block in re.split(r"\n[ \t]*\n", cleandoc(doc)):
        if not block.strip():
            continue
        if all(line.startswith((" ", "\t")) for line in block.splitlines()):
            blocks.append(("code", dedent(block)))
        else:
            blocks.append(("text", " ".join(block.split())))
    return blocks


def mechanism(doc: str) -> str:
    """At most three sentences of a docstring that say how the method works, with the formulas between them.

    Its first line, a title, and a sentence with authors and year are left out where more follows.
    """
    blocks = paragraphs(doc)
    if len(blocks) > 1 and any(kind == "text" for kind, _ in blocks[1:]):
        blocks = blocks[1:]
    parts, left = [], SENTENCES
    for kind, text in blocks:
        if left <= 0:
            break
        if kind == "code":
            parts.append(text.strip())
            continue
        sentences = [sentence for sentence in _END.split(text) if sentence]
        if len(sentences) > 1 and not parts and _SOURCE.fullmatch(sentences[0]):
            sentences = sentences[1:]
        parts.append(" ".join(sentences[:left]))
        left -= sum(sentence.rstrip().endswith((".", "!", "?")) for sentence in sentences[:left])
    return "\n".join(parts)
