"""The page that compares any two methods has the numbers of ``kdbench compare``."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from kdbench.leaderboard.comparison import compare
from tests.browser.conftest import go
from tests.browser.reading import active, column, text
from tests.helpers.site import NAMES

EXACT = (
    """rows => rows.map(row => ["n", "difference", "half", "a", "b"].map(name => Number(row.dataset[name] ?? NaN)))"""
)


def chosen(a: str, b: str) -> str:
    return f"compare.html?a={quote(a, safe='')}&b={quote(b, safe='')}"


def tasks(page: Page) -> list[str]:
    return column(page.locator("table#comparison"), "task")


@pytest.mark.parametrize(("a", "b"), [("vision/pld", "vision/kd"), ("llm/taid", "llm/kd_fkl")])
def test_the_numbers_are_those_of_the_command(open_page, shipped, a: str, b: str):
    page = open_page(shipped, chosen(a, b))
    expected = {one.board.title: one for one in compare(shipped.results, a, b)}
    assert sorted(tasks(page)) == sorted(expected)
    exact = page.locator("table#comparison tbody tr").evaluate_all(EXACT)
    for task, (n, difference, half, mean_a, mean_b) in zip(tasks(page), exact, strict=True):
        seeds = expected[task].seeds
        assert seeds is not None
        assert n == seeds.n
        assert difference == pytest.approx(seeds.mean, rel=1e-9)
        assert (difference - half, difference + half) == pytest.approx((seeds.low, seeds.high), rel=1e-9)
        assert mean_a - mean_b == pytest.approx(seeds.mean, rel=1e-6)


def test_a_choice_changes_the_table_and_its_address(open_page, shipped):
    page = open_page(shipped, chosen("vision/pld", "vision/kd"))
    before = text(page)
    page.locator("#b").select_option("vision/no_kd")
    expect(page.locator("#comparison-summary")).to_contain_text("vision/no_kd")
    assert text(page) != before
    address = page.url
    assert "no_kd" in address
    go(page, shipped, "index.html")
    page.goto(address)
    expect(page.locator("#comparison-summary")).to_contain_text("vision/no_kd")
    expect(page.locator("#a")).to_have_value("vision/pld")


def test_a_filter_leaves_the_methods_that_hold_the_text(open_page, shipped):
    page = open_page(shipped, "compare.html")
    page.locator("input[type=search]").first.fill("taid")
    expect(page.locator("#a option").first).to_have_text(re.compile("taid"))
    assert all("taid" in name for name in page.locator("#a option").all_inner_texts())


def test_methods_without_a_common_task_say_so(open_page, shipped):
    page = open_page(shipped, chosen("llm/taid", "vision/kd"))
    expect(page.locator("#comparison-summary")).to_contain_text("no task in common")


def test_attacks_are_compared_as_text(open_page, hostile):
    page = open_page(hostile, chosen(f"vision/{NAMES['script']}", f"vision/{NAMES['prototype']}"))
    said = text(page)
    assert NAMES["script"] in said
    assert NAMES["prototype"] in said
    assert len(tasks(page)) == 2
    assert not active(page)
