"""Docstrings as text: how a method works, in three sentences at most."""

from __future__ import annotations

import pytest

from kdbench.docstrings import SENTENCES, mechanism
from kdbench.registry import discover

WHOLE = """TITLE: What it is called.

Author, Other and Third et al., ICLR 2025. One sentence, e.g. This one, of A. Author. It goes on with the formula

    a  =  b,
    c  =  d

which ends here. Three (section 2). Four is too many.

Five.
"""


def test_title_and_authors_are_left_out_and_formulas_stay():
    assert mechanism(WHOLE).splitlines() == [
        "One sentence, e.g. This one, of A. Author. It goes on with the formula",
        "a  =  b,",
        "c  =  d",
        "which ends here. Three (section 2).",
    ]


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        ("", ""),
        ("One line alone.", "One line alone."),
        ("One line\nthat flows.", "One line that flows."),
        ("A title.\n\nNo end", "No end"),
        ("A title.\n\nHinton, 2015.", "Hinton, 2015."),
    ],
)
def test_little_is_shown_whole(doc, expected):
    assert mechanism(doc) == expected


def test_every_method_has_a_mechanism_of_its_own_words():
    for method in discover().methods.values():
        text = mechanism(method.doc)
        assert text, method.key
        words = set(text.split())
        assert words <= set(method.doc.split()), method.key
        assert text.count(". ") <= 3 * SENTENCES, method.key
