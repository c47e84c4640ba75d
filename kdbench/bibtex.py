"""Cards of methods as BibTeX, written by pybtex."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kdbench.cards import Baseline, Card, Paper
from kdbench.errors import UsageError

if TYPE_CHECKING:
    from pybtex.database import Entry


def bibliography(cards: Iterable[Card]) -> str:
    """One entry per publication, in the order of ``cards``, each card once; a comment for one without publication.

    A paper is cited as ``surname`` ``year`` ``slug``. Of a baseline only what its card says as free text is known: it
    stands in the entry's ``note``. Raises ``UsageError`` where a card holds what BibTeX cannot, such as braces that are
    not closed.
    """
    from pybtex.database import BibliographyData
    from pybtex.database.output import bibtex
    from pybtex.exceptions import PybtexError

    parts = []
    for card in {card.key: card for card in cards}.values():
        if isinstance(card, Baseline) and not card.reference:
            parts.append(f"% {card.key}: {card.title} has no publication\n")
            continue
        try:
            name, entry = _entry(card)
            # its own to_string asks the metadata of every installed package for a writer
            parts.append(bibtex.Writer().to_string(BibliographyData({name: entry})))
        except (PybtexError, bibtex.BibTeXError) as error:
            raise UsageError(f"cannot be written as BibTeX: {error}", place=card.key) from error
    return "\n".join(parts)


def _entry(card: Card) -> tuple[str, Entry]:
    from pybtex.database import Entry, Person

    # double braces: styles turn the rest of a title to lower case
    fields = [("title", f"{{{card.title}}}")]
    if not isinstance(card, Paper):
        return card.slug, Entry("misc", fields=[*fields, ("note", getattr(card, "reference", ""))])
    people = [Person(name) for name in card.authors]
    if card.venue:
        fields.append(("booktitle", card.venue))
    fields.append(("year", str(card.year)))
    if card.arxiv:
        fields += [("eprint", card.arxiv), ("archiveprefix", "arXiv")]
    if card.url:
        fields.append(("url", card.url))
    surname = "".join(letter for letter in "".join(people[0].last_names).lower() if letter.isalnum()) if people else ""
    kind = "inproceedings" if card.venue else "misc"
    return f"{surname}{card.year}{card.slug}", Entry(kind, fields=fields, persons={"author": people} if people else {})
