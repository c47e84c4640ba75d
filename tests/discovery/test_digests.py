"""What makes a method another one: its code, and not what it says about itself."""

from __future__ import annotations

import hashlib

import pytest

from kdbench.discovery.digests import method_digest
from kdbench.discovery.source import read

FILE = '''"""Softer labels.

Two paragraphs.
"""

from kdbench import Field, Paper, Params, hookimpl

PAPER = Paper(
    slug="soft",
    title="Soft labels, naïvely",
    year=2024,
    track="toy",
    tasks=["*"],
)


class P(Params):
    weight: float = Field(0.5, ge=0, le=1, help="Of the teacher.")


@hookimpl
def train(task, params):
    """Train."""
    return task.student()
'''


def digest(text: str) -> str:
    return method_digest(text.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Softer labels.', '"""Labels that are softer.'),
        ("Two paragraphs.", "Two paragraphs: naïve ones.\n\nThree."),
        ("year=2024", "year=2025"),
        ('    tasks=["*"],\n', '    tasks=["one", "two"],\n    venue="TMLR",\n'),
    ],
)
def test_what_a_file_says_about_itself_is_left_out(old, new):
    assert old in FILE
    assert digest(FILE.replace(old, new)) == digest(FILE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.5", "0.25"),
        ("le=1", "le=2"),
        ("return task.student()", "return None"),
        ("hookimpl\n\n", "hookimpl\nfrom math import pi\n\n"),
        ("\n\nclass P", "\n\nOTHER = 1\n\n\nclass P"),
    ],
)
def test_all_the_rest_counts(old, new):
    assert old in FILE
    assert digest(FILE.replace(old, new)) != digest(FILE)


@pytest.mark.parametrize(
    ("reads", "old", "new"),
    [
        ("    print(PAPER.year)\n", "year=2024", "year=2025"),
        ("    print(__doc__)\n", "Two paragraphs.", "Three."),
    ],
)
def test_what_the_code_reads_counts(reads, old, new):
    reading = FILE.replace("    return task", reads + "    return task")
    assert digest(reading) != digest(FILE)
    assert digest(reading.replace(old, new)) != digest(reading)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_encodings_and_ends_of_lines_cut_at_the_same_places(ending, mark):
    first, second = (
        mark + text.replace("\n", ending).encode()
        for text in (FILE, FILE.replace("naïvely", "naïvement").replace("Softer", "Sûr: softer"))
    )
    assert first != second
    assert method_digest(first) == method_digest(second)
    assert method_digest(first) != method_digest(first.replace(b"0.5", b"0.6"))


def test_statements_that_share_lines_with_others_are_cut_out():
    head = "from kdbench import Baseline\n"
    one = '"""Doc."""; A = 1; BASELINE = Baseline(slug="a", title="a", track="t", tasks=["*"]); B = "ï"\n'
    other = '"""Ü."""; A = 1; BASELINE = Baseline(slug="ab", title="ü", track="t", tasks=["*"]); B = "ï"\n'
    assert digest(one + head) == digest(other + head)
    assert digest(one + head) != digest(one.replace("A = 1", "A = 2") + head)
    assert digest(one + head) != digest(one.replace('"ï"', '"i"') + head)


@pytest.mark.parametrize("content", [b"def (", b"\xff\xfe", b"x = 1\n", b'"""Doc."""\n'])
def test_a_file_that_is_no_method_is_taken_whole(content):
    assert method_digest(content) == hashlib.sha256(content).hexdigest()


def test_the_reader_gives_the_same_digest(tmp_path):
    path = tmp_path / "soft.py"
    path.write_text(FILE)
    assert read(path).digest == digest(FILE)
