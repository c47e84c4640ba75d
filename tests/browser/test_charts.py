"""Charts: drawn from the page's own data, pointed at, followed to a method, in the colours of the theme."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from kdbench.leaderboard.report import names
from tests.browser.reading import column
from tests.helpers.site import NAMES

TASK = "tasks/vision.digits-gap.cpu.html"
POINTS = "svg .mark-symbol.role-mark path"

_TOP = """(points) => points.findIndex(point => {
  const box = point.getBoundingClientRect();
  return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === point;
})"""


def scatter(page: Page) -> Locator:
    """The first chart, drawn."""
    figure = page.locator("figure.chart").first
    figure.scroll_into_view_if_needed()
    expect(figure.locator("svg").first).to_be_visible()
    return figure


def free_point(figure: Locator) -> Locator:
    """A point that no other covers."""
    points = figure.locator(POINTS)
    at = points.evaluate_all(_TOP)
    assert at >= 0
    return points.nth(at)


def test_the_scatter_has_a_point_for_every_method(open_page, shipped):
    page = open_page(shipped, TASK)
    methods = column(page.locator("main table.sortable").first, "method")
    assert len(methods) > 10
    expect(scatter(page).locator(POINTS)).to_have_count(len(methods))


def test_a_point_tells_its_numbers_and_leads_to_its_method(open_page, shipped):
    page = open_page(shipped, TASK)
    point = free_point(scatter(page))
    point.hover()
    tooltip = page.locator("#vg-tooltip-element")
    expect(tooltip).to_be_visible()
    said = tooltip.inner_text()
    assert "±" in said
    point.click()
    expect(page).to_have_url(re.compile(r"/methods/vision\.[a-z0-9_-]+\.html"))
    slug = page.locator("h1").inner_text()
    assert slug.split("/")[-1].split()[-1].split("(")[0] in said


def test_another_cost_draws_another_axis(open_page, shipped):
    page = open_page(shipped, TASK)
    figure = scatter(page)
    expect(figure.locator("svg")).to_contain_text("train seconds")
    choice = page.locator("main select").filter(has=page.locator("option", has_text=re.compile("flops", re.I))).first
    choice.select_option(label=choice.locator("option", has_text=re.compile("flops", re.I)).inner_text())
    expect(page.locator("figure.chart:visible").first.locator("svg")).to_contain_text(re.compile("flops", re.I))


def test_the_charts_of_a_method_are_drawn(open_page, shipped):
    page = open_page(shipped, "methods/vision.pld.html")
    figures = page.locator("figure.chart")
    assert figures.count() >= 2
    for number in range(figures.count()):
        figures.nth(number).scroll_into_view_if_needed()
        expect(figures.nth(number).locator("svg").first).to_be_visible()


def test_text_of_a_chart_has_the_colour_of_the_theme(open_page, shipped):
    colours = {}
    for scheme in ("light", "dark"):
        figure = scatter(open_page(shipped, TASK, color_scheme=scheme))
        colours[scheme] = figure.locator("svg text").first.evaluate("text => getComputedStyle(text).fill")
    assert colours["light"] != colours["dark"]


def test_attacks_in_a_chart_are_text(open_page, hostile):
    page = open_page(hostile, hostile.pages("tasks/*.html")[0])
    points = scatter(page).locator(POINTS)
    said = ""
    for number in range(0, points.count(), 4):
        points.nth(number).hover(force=True)
        tooltip = page.locator("#vg-tooltip-element")
        if tooltip.is_visible():
            assert tooltip.locator("img, script, iframe, svg, a").count() == 0
            said += tooltip.inner_text()
    assert said


def test_a_point_of_any_name_leads_to_its_own_page(open_page, hostile):
    page = open_page(hostile, hostile.pages("tasks/*.html")[0])
    free_point(scatter(page)).click()
    expect(page).to_have_url(re.compile(r"/methods/"))
    expect(page.locator("h1")).to_be_visible()
    assert names.method_page(f"vision/{NAMES['url']}") in hostile.pages("methods/*.html")
