"""Light and dark: as the system says, or as the switch of the page does, on every page from then on; print is white."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

KINDS = ("index.html", "claims.html", "compare.html", "tracks/*.html", "tasks/*.html", "methods/*.html", "jobs/*.html")


def brightness(page: Page) -> float:
    """Of the page's background, from 0 (black) to 255 (white)."""
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    if color == "rgba(0, 0, 0, 0)":
        color = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    parts = [float(part) for part in re.findall(r"[\d.]+", color)[:3]]
    return sum(parts) / 3


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_a_page_follows_the_system(open_page, shipped, scheme: str, dark: bool):
    page = open_page(shipped, "index.html", color_scheme=scheme)
    assert (brightness(page) < 128) == dark


def test_the_switch_goes_on_the_next_page(open_page, shipped):
    page = open_page(shipped, "index.html", color_scheme="light")
    switch = page.locator("button#theme")
    root = page.locator("html")
    for _ in range(3):
        switch.click()
        if root.get_attribute("data-theme") == "dark":
            break
    expect(root).to_have_attribute("data-theme", "dark")
    assert brightness(page) < 128
    page.goto(shipped.url("claims.html"))
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert brightness(page) < 128


def test_the_switch_is_reached_and_used_by_keys(open_page, shipped):
    page = open_page(shipped, "index.html")
    before = page.locator("html").get_attribute("data-theme")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "theme":
            break
    expect(page.locator("button#theme")).to_be_focused()
    page.keyboard.press("Enter")
    assert page.locator("html").get_attribute("data-theme") != before


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_in_either_theme(open_page, shipped, kind: str):
    page = open_page(shipped, shipped.pages(kind)[0], color_scheme="light")
    # "preload" would fetch the styles, which pages may not
    options = {"preload": False, "resultTypes": ["violations"]}
    found = Axe().run(page, options=options)
    assert not found.violations_count, found.generate_report()
    page.emulate_media(color_scheme="dark")
    found = Axe().run(page, options=options | {"runOnly": ["color-contrast"]})
    assert not found.violations_count, found.generate_report()


def test_print_is_black_on_white_without_controls(open_page, shipped):
    page = open_page(shipped, "tasks/vision.digits-gap.cpu.html", color_scheme="dark")
    page.emulate_media(media="print")
    assert brightness(page) > 250
    expect(page.locator("button#theme")).to_be_hidden()
    expect(page.locator("input[type=search]").first).to_be_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")
