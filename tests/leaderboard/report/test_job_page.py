"""The page of a failed job: the end of its log, and its error."""

from __future__ import annotations

import os

import pytest

from kdbench.leaderboard.report.job_page import log_end


def test_a_short_log_is_shown_whole(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("a\n\nb\n")
    assert log_end(path) == ("a\n\nb", False)


def test_of_a_long_log_the_last_whole_lines_are_shown(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("".join(f"line {number}\n" for number in range(10_000)))
    text, cut = log_end(path, size=1000, lines=50)
    assert cut
    assert text.splitlines() == [f"line {number}" for number in range(9950, 10_000)]
    text, cut = log_end(path, size=100)
    assert cut
    assert text.startswith("line ")
    assert len(text) <= 100


def test_one_long_line_is_shown_by_its_end(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"\xff" + b"x" * 5000)
    assert log_end(path, size=100) == ("x" * 100, True)


@pytest.mark.parametrize("kind", ["missing", "link", "pipe", "folder"])
def test_what_is_no_log_is_none(tmp_path, kind):
    path, secret = tmp_path / "log.txt", tmp_path / "secret"
    secret.write_text("of another file")
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    assert log_end(path) == ("", False)
