"""The index: faster, never different."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kdbench.discovery import index as module
from kdbench.discovery import source
from kdbench.discovery.index import Index
from tests.discovery.test_source import RICH
from tests.helpers.plugins import METHOD, write


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    return write(tmp_path / "plugins" / "rich.py", RICH)


@pytest.fixture(autouse=True)
def files_are_settled(monkeypatch):
    """Files of tests are young, and their change time cannot be set back."""
    monkeypatch.setattr(module, "RACY_SECONDS", -1.0)


@pytest.fixture
def never_read(monkeypatch):
    def refuse():
        def read(path):
            raise AssertionError(f"{path} was read although the index has it")

        monkeypatch.setattr(source, "read", read)

    return refuse


def test_a_known_file_is_not_read_again_and_gives_the_same(tmp_path, plugin, never_read):
    index = Index(tmp_path / "index.json")
    first = index.read(plugin)
    index.save()
    never_read()
    assert Index(tmp_path / "index.json").read(plugin) == first
    assert isinstance(first.card.tasks, tuple)


def test_flaws_are_kept_too(tmp_path, never_read):
    path = write(tmp_path / "bad.py", METHOD.format(slug="bad", track="vision").replace("def train", "def trian"))
    index = Index(tmp_path / "index.json")
    first = index.read(path)
    assert first.flaws
    index.save()
    never_read()
    assert Index(tmp_path / "index.json").read(path) == first


def test_another_content_of_the_same_size_and_time_is_noticed(tmp_path, plugin):
    index = Index(tmp_path / "index.json")
    before = index.read(plugin)
    status = plugin.stat()
    plugin.write_text(plugin.read_text().replace("year=2024", "year=2023"))
    os.utime(plugin, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert plugin.stat().st_size == status.st_size
    after = index.read(plugin)
    assert (before.card.year, after.card.year) == (2024, 2023)


def test_a_file_that_was_just_written_is_not_trusted(tmp_path, plugin, monkeypatch):
    monkeypatch.setattr(module, "RACY_SECONDS", 3600.0 * 24)
    index = Index(tmp_path / "index.json")
    index.read(plugin)
    index.save()
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: "\x00\xff",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"Paper"', '"os.system"'),
        lambda text: text.replace('"slug"', '"slag"'),
        lambda text: text.replace('"tuple"', '"purse"'),
        lambda text: json.dumps({**json.loads(text), "entries": {"x": 3}}),
        lambda text: json.dumps({**json.loads(text), "entries": 3}),
        lambda text: json.dumps({**json.loads(text), "installed": [1]}),
        lambda text: json.dumps({**json.loads(text), "version": "of yesterday"}),
    ],
)
def test_a_damaged_index_changes_nothing_and_is_made_anew(tmp_path, plugin, damage):
    path = tmp_path / "index.json"
    index = Index(path)
    first, points = index.read(plugin), index.entry_points()
    index.save()
    whole = path.read_text()
    path.write_text(damage(whole))
    again = Index(path)
    assert again.read(plugin) == first
    assert again.entry_points() == points
    again.save()
    assert json.loads(path.read_text())["entries"][str(plugin)] == json.loads(whole)["entries"][str(plugin)]


def test_an_index_that_cannot_be_written_is_no_error(tmp_path, plugin):
    blocker = write(tmp_path / "file", "not a folder")
    index = Index(blocker / "index.json")
    assert index.read(plugin).card is not None
    index.save()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_saving_leaves_no_other_file_and_forgets_files_that_are_gone(tmp_path, plugin):
    gone = write(tmp_path / "plugins" / "gone.py", "x = 1\n")
    index = Index(tmp_path / "cache" / "index.json")
    index.read(gone)
    index.read(plugin)
    gone.unlink()
    index.save()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["index.json"]
    assert list(json.loads((tmp_path / "cache" / "index.json").read_text())["entries"]) == [str(plugin)]


def test_newly_installed_entry_points_are_noticed(tmp_path, monkeypatch):
    from tests.helpers.plugins import install

    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    index = Index(tmp_path / "index.json")
    before = index.entry_points()
    install(site, "more", "[kdbench]\nmore = more_methods\n")
    found = [point for point in index.entry_points() if point not in before]
    assert [(point.name, point.value, point.source) for point in found] == [
        ("more", "more_methods", "entry point more (more 1.2)")
    ]
