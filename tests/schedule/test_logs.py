"""Logs keep both ends of what is printed, within a fixed room."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.schedule.logs import CappedLog, last_lines


def written(path, pieces, head=100, tail=100):
    log = CappedLog(path, head, tail)
    for piece in pieces:
        log.write(piece)
        assert path.stat().st_size <= head, "the disk holds no more than the first part while it is open"
    log.close()
    log.close()
    return path.read_bytes()


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_a_short_log_is_complete(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("log") / "log.txt"
    assert written(path, pieces) == b"".join(pieces)


def test_a_long_log_keeps_both_ends_and_says_what_is_missing(tmp_path):
    lines = [b"line %06d\n" % number for number in range(10_000)]
    text = written(tmp_path / "log.txt", lines)
    assert text.startswith(b"".join(lines)[:100])
    assert text.endswith(b"".join(lines[-8:]))
    notice = next(line for line in text.splitlines() if b"left out" in line)
    missing = int(notice.split()[1])
    assert len(text) - len(notice) - 2 + missing == sum(map(len, lines))
    assert len(text) < 300
    after = text.partition(notice + b"\n")[2]
    assert after in b"".join(lines)
    assert after.startswith(b"line "), "the last part begins with a whole line"


def test_one_endless_line_is_cut_too(tmp_path):
    text = written(tmp_path / "log.txt", [b"x" * 5000])
    assert 200 <= len(text) < 300


def test_the_size_of_a_write_does_not_matter(tmp_path):
    data = b"".join(b"%d\n" % number for number in range(5000))
    whole = written(tmp_path / "a", [data])
    pieces = written(tmp_path / "b", [data[i : i + 7] for i in range(0, len(data), 7)])
    assert whole == pieces


def test_last_lines_of_a_log(tmp_path):
    path = tmp_path / "log.txt"
    assert last_lines(path) == ""
    path.write_bytes(b"\xff\n" + b"".join(b"%d\n" % number for number in range(100)))
    assert last_lines(path, 2) == "98\n99"
    assert "\ufffd" in last_lines(path, 200)
