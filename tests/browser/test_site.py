"""Ways through the site: from track to task to method and back, with a mouse and with a keyboard."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

import pytest
from lxml import html
from playwright.sync_api import expect

from tests.browser.reading import sideways

KINDS = (
    "index.html",
    "claims.html",
    "compare.html",
    "tracks/vision.html",
    "tasks/*.html",
    "methods/*.html",
    "jobs/*.html",
)


def one_of(site, kind: str) -> str:
    return site.pages(kind)[0]


def test_from_the_overview_to_a_method_and_back(open_page, shipped):
    page = open_page(shipped, "index.html")
    page.locator("main").get_by_role("link", name="vision", exact=True).first.click()
    expect(page).to_have_url(re.compile(r"/tracks/vision\.html"))
    page.locator("main").get_by_role("link", name=re.compile("digits-gap")).first.click()
    expect(page).to_have_url(re.compile(r"/tasks/vision\.digits-gap\.cpu\.html"))
    page.locator("main table").first.get_by_role("link", name="pld", exact=True).first.click()
    expect(page).to_have_url(re.compile(r"/methods/vision\.pld\.html"))
    expect(page.locator("main")).to_contain_text("Choice-Theoretic")
    for name, end in (("vision", "tracks/vision.html"), ("overview", "index.html")):
        page.get_by_role("navigation").get_by_role("link", name=re.compile(name, re.I)).first.click()
        expect(page).to_have_url(re.compile(re.escape(end)))


@pytest.mark.parametrize("kind", ["index.html", "compare.html", "methods/*.html"])
def test_the_first_key_offers_to_skip_to_the_content(open_page, shipped, kind: str):
    page = open_page(shipped, one_of(shipped, kind))
    page.keyboard.press("Tab")
    skip = page.locator("a.skip")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main#main")).to_be_focused()


@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_scrolls_in_one_direction(open_page, shipped, kind: str):
    page = open_page(shipped, one_of(shipped, kind), viewport={"width": 360, "height": 740}, has_touch=True)
    page.wait_for_load_state("networkidle")
    assert sideways(page)["by"] <= 0, sideways(page)


def test_every_link_leads_somewhere(shipped):
    root = shipped.folder.resolve()
    documents = {path: html.parse(root / path).getroot() for path in shipped.pages("**/*.html")}
    anchors = {path: set(document.xpath("//@id")) for path, document in documents.items()}
    broken = []
    for path, document in documents.items():
        for link in document.xpath("//a/@href | //link/@href | //script/@src | //img/@src"):
            parts = urlsplit(link)
            if parts.scheme in ("https", "http", "data"):
                continue
            place = (root / path).parent / unquote(parts.path) if parts.path else root / path
            name = os.path.relpath(place.resolve(), root)
            known = anchors.get(name)
            # what stands behind # of the page that compares is a choice
            lost = parts.fragment and name != "compare.html" and parts.fragment not in (known or ())
            if not place.exists() or lost:
                broken.append((path, link))
    assert len(documents) > 50
    assert not broken
