"""The folder of a site: only what kdbench wrote is replaced or removed, and never by half."""

from __future__ import annotations

import json
import os

import pytest

from kdbench.errors import UsageError
from kdbench.leaderboard.report.folder import LOCK, MANIFEST, STAGING, SiteFolder


def write(out, *files, text="new"):
    with SiteFolder(out) as folder:
        for file in files:
            folder.write(file, text)
        return folder.publish()


def files(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_a_site_is_written_with_a_list_of_its_files(tmp_path):
    out = tmp_path / "deep" / "site"
    assert write(out, "index.html", "tasks/a.html") == ["index.html", "tasks/a.html"]
    assert files(out) == [MANIFEST, "index.html", "tasks/a.html"]
    assert json.loads((out / MANIFEST).read_text())["files"] == ["index.html", "tasks/a.html"]


def test_a_second_site_replaces_the_first_and_removes_what_is_gone(tmp_path):
    write(tmp_path, "index.html", "tasks/a.html", "jobs/b.html", text="old")
    (tmp_path / "tasks" / "mine.txt").write_text("kept")
    write(tmp_path, "index.html", "methods/c.html")
    assert files(tmp_path) == [MANIFEST, "index.html", "methods/c.html", "tasks/mine.txt"]
    assert (tmp_path / "index.html").read_text() == "new"
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize("name", ["thesis.tex", ".git", "index.html"])
def test_a_folder_with_anything_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="no site that kdbench wrote"):
        write(tmp_path, "index.html")
    assert files(tmp_path) == [name]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="folder"):
        write(tmp_path / "out", "index.html")


def test_a_foreign_file_in_the_way_stops_everything(tmp_path):
    write(tmp_path, "index.html", text="old")
    (tmp_path / "claims.html").write_text("mine")
    with pytest.raises(UsageError, match="was not written by kdbench"):
        write(tmp_path, "index.html", "claims.html")
    assert (tmp_path / "index.html").read_text() == "old"
    assert (tmp_path / "claims.html").read_text() == "mine"
    assert not (tmp_path / STAGING).exists()


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"files": ["../../x"]}', '{"files": ["/etc/x"]}'])
def test_a_list_that_cannot_be_trusted_stops_everything(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UsageError):
        write(tmp_path, "index.html")
    assert files(tmp_path) == [MANIFEST]


def test_what_fails_leaves_the_old_site(tmp_path):
    write(tmp_path, "index.html", text="old")
    with pytest.raises(RuntimeError, match="planted"), SiteFolder(tmp_path) as folder:
        folder.write("index.html", "new")
        raise RuntimeError("planted")
    assert files(tmp_path) == [MANIFEST, "index.html"]
    assert (tmp_path / "index.html").read_text() == "old"


def test_what_was_killed_is_taken_over(tmp_path, monkeypatch):
    write(tmp_path, "index.html", "a.html", text="old")
    folder = SiteFolder(tmp_path).__enter__()
    folder.write("index.html", "new")
    folder.write("b.html", "new")

    def killed(source, target):
        if str(target).endswith("index.html"):
            raise KeyboardInterrupt
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.publish()
    monkeypatch.undo()
    folder._lock.release()  # as the end of a process does
    assert (tmp_path / STAGING).exists()
    assert "b.html" in json.loads((tmp_path / MANIFEST).read_text())["files"], "known as its own before it is there"
    assert write(tmp_path, "index.html") == ["index.html"]
    assert files(tmp_path) == [MANIFEST, "index.html"]


def test_an_empty_folder_that_a_killed_build_left_is_taken(tmp_path):
    (tmp_path / STAGING / "tasks").mkdir(parents=True)
    (tmp_path / LOCK).touch()
    assert write(tmp_path, "index.html") == ["index.html"]


def test_two_at_once_are_refused(tmp_path):
    with SiteFolder(tmp_path), pytest.raises(UsageError, match="another kdbench report"):
        write(tmp_path, "index.html")


def test_links_in_the_place_of_pages_are_replaced_not_followed(tmp_path):
    out, other = tmp_path / "site", tmp_path / "other.html"
    write(out, "index.html")
    other.write_text("mine")
    (out / "index.html").unlink()
    (out / "index.html").symlink_to(other)
    write(out, "index.html")
    assert other.read_text() == "mine"
    assert not (out / "index.html").is_symlink()
