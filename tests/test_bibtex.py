"""``kdbench cite``: entries that BibTeX reads back."""

from __future__ import annotations

import pytest
from pybtex.database import parse_string

from kdbench import Baseline, Paper
from kdbench.bibtex import bibliography
from kdbench.errors import UsageError
from kdbench.registry import discover


def paper(**changed):
    about = {
        "slug": "taid",
        "title": "TAID: 100 % of it",
        "track": "llm",
        "tasks": ["text"],
        "year": 2025,
        "venue": "ICLR",
        "authors": ["Makoto Shing", "Ö. van der Berg"],
        "arxiv": "2501.16937",
        "url": "https://example.org/a_b",
    }
    return Paper(**{**about, **changed})


def test_an_entry_reads_back_as_the_card():
    read = parse_string(bibliography([paper()]), "bibtex").entries["shing2025taid"]
    assert read.type == "inproceedings"
    assert [str(person) for person in read.persons["author"]] == ["Shing, Makoto", "van der Berg, Ö."]
    assert read.fields["title"] == r"{TAID: 100 \% of it}"
    assert read.fields["booktitle"] == "ICLR"
    assert read.fields["eprint"] == "2501.16937"


def test_a_preprint_without_authors_is_cited_by_its_name():
    read = parse_string(bibliography([paper(venue="", authors=[])]), "bibtex").entries["2025taid"]
    assert read.type == "misc"
    assert "author" not in read.persons


def test_baselines_say_what_is_known_of_them():
    known = Baseline(slug="kd", title="KD", track="vision", tasks=["*"], reference="Hinton, Vinyals, Dean 2015")
    unknown = Baseline(slug="no_kd", title="No distillation", track="vision", tasks=["*"])
    text = bibliography([known, unknown, known])
    assert parse_string(text, "bibtex").entries["kd"].fields["note"] == "Hinton, Vinyals, Dean 2015"
    assert text.count("@misc") == 1
    assert "% vision/no_kd: No distillation has no publication" in text


def test_what_bibtex_cannot_hold_is_refused():
    with pytest.raises(UsageError, match="cannot be written as BibTeX"):
        bibliography([paper(title="open { brace")])


def test_every_paper_here_has_authors_and_an_entry():
    papers = [method.card for method in discover().methods.values() if isinstance(method.card, Paper)]
    assert papers
    assert [card.key for card in papers if not card.authors] == []
    assert len(parse_string(bibliography(papers), "bibtex").entries) == len(papers)
