"""Tables of a task: sorted and filtered with a mouse and with keys."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.reading import column, header, numbers

TASK = "tasks/vision.digits-gap.cpu.html"


@pytest.fixture
def page(open_page, shipped) -> Page:
    return open_page(shipped, TASK)


@pytest.fixture
def table(page: Page) -> Locator:
    return page.locator("main table.sortable").first


def is_sorted(values: list[float | None], *, descending: bool) -> bool:
    known = [value for value in values if value is not None]
    return len(known) > 5 and known == sorted(known, reverse=descending)


def test_the_board_comes_in_the_order_of_its_ranks(table: Locator):
    assert is_sorted(numbers(table, "score"), descending=True)


def test_a_click_on_a_header_sorts_by_number(table: Locator):
    score = header(table, "score")
    for order in ("ascending", "descending"):
        score.click()
        expect(score).to_have_attribute("aria-sort", order)  # rows are sorted with it, a moment after the click
        assert is_sorted(numbers(table, "score"), descending=order == "descending")
        assert not is_sorted(numbers(table, "score"), descending=order == "ascending")


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_key_on_a_header_sorts(page: Page, table: Locator, key: str):
    name = header(table, "method")
    before = name.get_attribute("aria-sort")
    name.locator("[tabindex='0'], button").first.focus()
    page.keyboard.press(key)
    expect(name).to_have_attribute("aria-sort", re.compile("ascending|descending"))
    assert name.get_attribute("aria-sort") != before
    shown = [text.casefold() for text in column(table, "method")]
    assert shown == sorted(shown) or shown == sorted(shown, reverse=True)


def test_a_search_leaves_the_rows_that_hold_the_text(page: Page, table: Locator):
    everything = column(table, "method")
    page.locator("main input[type=search]").first.fill("pld")
    expect(table.locator("tbody tr")).to_have_count(sum("pld" in name for name in everything))
    assert all("pld" in name for name in column(table, "method"))
    page.locator("main input[type=search]").first.fill("")
    expect(table.locator("tbody tr")).to_have_count(len(everything))


def test_a_search_without_a_hit_says_so(page: Page, table: Locator):
    page.locator("main input[type=search]").first.fill("<b>no such method</b>")
    expect(table.locator("tbody")).to_contain_text(re.compile("no ", re.I))
    expect(table.locator("tbody b")).to_have_count(0)


def test_every_row_is_shown(page: Page, table: Locator):
    without = page.context.browser.new_context(java_script_enabled=False)
    bare = without.new_page()
    bare.goto(page.url)
    rows = bare.locator("main table.sortable").first.locator("tbody tr").count()
    without.close()
    assert rows > 10
    expect(table.locator("tbody tr")).to_have_count(rows)
