"""Names, metrics, errors, logs and pictures that attack are shown as text and as pictures: nothing of theirs runs."""

from __future__ import annotations

import pytest

from kdbench.errors import plain
from kdbench.leaderboard.report import names
from tests.browser.conftest import go
from tests.browser.reading import active, sideways, text
from tests.helpers.site import HOSTILE_TASKS, HOSTILE_TRACKS, METRICS, NAMES

KINDS = {"index": 1, "claims": 1, "compare": 1, "tracks/*": 1, "tasks/*": 2, "methods/*": 6, "jobs/*": 8}
"""Kinds of pages, and the how-manieth of each is opened: the pages of the two tracks say the same."""


def shown(name: str) -> str:
    """How a page shows a name: control characters as escapes, white space as HTML does."""
    return " ".join(plain(name).split())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_runs_on_any_page(open_page, hostile, kind: str):
    pages = hostile.pages(f"{kind}.html")[:: KINDS[kind]]
    page = open_page(hostile, pages[0])
    for path in pages:
        go(page, hostile, path)
        assert not active(page), path
        assert page.locator("main#main").count() == 1, path


def test_a_task_shows_every_name_as_it_is(open_page, hostile):
    page = open_page(hostile, hostile.pages("tasks/*.html")[0])
    said = text(page)
    missing = [attack for attack, name in NAMES.items() if attack != "long words" and shown(name) not in said]
    assert not missing


def test_every_method_has_a_page_of_its_own(open_page, hostile):
    paths = {names.method_page(f"{track}/{name}") for track in HOSTILE_TRACKS for name in NAMES.values()}
    assert len({path.lower() for path in paths}) == len(HOSTILE_TRACKS) * len(NAMES)
    assert paths == set(hostile.pages("methods/*.html"))
    page = open_page(hostile, "index.html")
    for name in (NAMES["script"], NAMES["outside"], NAMES["prototype"], NAMES["upper"]):
        page.goto(hostile.url(names.method_page(f"vision/{name}")))
        assert shown(name) in " ".join(page.locator("h1").inner_text().split())


def test_a_failed_job_shows_its_log_and_its_error_as_text(open_page, hostile):
    page = open_page(hostile, hostile.pages("jobs/*.html")[0])
    said = text(page)
    assert "</pre></code></script><script>alert('log')</script>" in said
    assert "the last line of the log" in said
    assert NAMES["script"] in said
    assert "\x1b" not in page.content()


def test_metrics_of_any_name_are_shown(open_page, hostile):
    page = open_page(hostile, names.method_page(f"vision/{NAMES['script']}"))
    assert shown(METRICS[0]) in text(page)


def test_long_names_do_not_widen_a_phone(open_page, hostile):
    page = open_page(hostile, "index.html", viewport={"width": 360, "height": 740})
    for path in (hostile.pages(f"{kind}.html")[0] for kind in KINDS):
        go(page, hostile, path)
        assert sideways(page)["by"] <= 0, (path, sideways(page))


def test_tracks_and_tasks_of_any_name_have_pages(hostile):
    assert len(hostile.pages("tracks/*.html")) == len(HOSTILE_TRACKS)
    assert len(hostile.pages("tasks/*.html")) == len(HOSTILE_TRACKS) * len(HOSTILE_TASKS)
