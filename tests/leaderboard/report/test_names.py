"""File names of pages: safe, and different for different things."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.leaderboard.report.names import job_page, method_page, page_name, task_pages, track_page
from tests.helpers.site import NAMES


@pytest.mark.parametrize(
    ("parts", "name"),
    [(("vision", "kd"), "vision.kd"), (("llm", "text-noisy", "cpu"), "llm.text-noisy.cpu"), (("a_b1",), "a_b1")],
)
def test_plain_parts_are_used_as_they_are(parts, name):
    assert page_name(*parts) == name


@given(st.lists(st.text(max_size=200), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_part_becomes_a_safe_name(parts):
    name = page_name(*parts)
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._-]*", name)
    assert len(name) < 400


@given(
    st.lists(st.text("aA.-_/b\u00e9", max_size=4), min_size=1, max_size=3),
    st.lists(st.text("aA.-_/b\u00e9", max_size=4), min_size=1, max_size=3),
)
@settings(max_examples=500, deadline=None)
def test_different_parts_have_different_names(one, other):
    assert (page_name(*one) == page_name(*other)) == (one == other)


def test_no_name_can_be_made_to_be_that_of_another():
    taken = page_name("vision", "KD")
    assert taken.startswith("vision.kd--")
    assert page_name("vision", taken.removeprefix("vision.")) != taken
    assert page_name("a.b", "c") != page_name("a", "b.c")


def test_hostile_names_stay_inside_of_the_site_and_apart():
    pages = {method_page(f"vision/{name}") for name in NAMES.values()}
    assert len({page.lower() for page in pages}) == len(NAMES)
    for page in [*pages, track_page(NAMES["outside"]), job_page("../../etc/passwd")]:
        assert re.fullmatch(r"(methods|tracks|jobs)/[a-z0-9_][a-z0-9._-]*\.html", page)
        assert "/.." not in page


def test_of_several_definitions_of_a_task_the_first_has_the_plain_name():
    class Board:
        def __init__(self, task, digest):
            self.task, self.scale, self.spec_digest = task, "cpu", digest

    pages = task_pages([Board("vision/toy", "new"), Board("vision/toy", "old"), Board("vision/other", "x")])
    assert pages == {
        "new": "tasks/vision.toy.cpu.html",
        "old": "tasks/vision.toy.cpu.old.html",
        "x": "tasks/vision.other.cpu.html",
    }
