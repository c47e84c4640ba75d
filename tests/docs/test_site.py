"""The built documentation: without a warning, with links that hold, readable without a network."""

from __future__ import annotations

import inspect
import posixpath
import re
import resource
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.documents import build, copied, hook_classes


class Page(HTMLParser):
    """Ids, links and loaded resources of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe") and "src" in given:
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def read(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path.read_text()) for path in site.rglob("*.html")}


def test_there_is_a_page_for_every_document_and_method(registry, read: dict[str, Page]):
    expected = {f"methods/{key}.html" for key in registry.methods}
    expected |= {f"tracks/{track}.html" for track in registry.tracks}
    assert expected <= set(read)
    assert {"index.html", "quickstart.html", "suites.html", "cli.html", "hooks.html", "api.html"} <= set(read)


def test_every_internal_link_leads_somewhere(site: Path, read: dict[str, Page]):
    broken = []
    for name, page in read.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path))) if parts.path else name
            )
            if target in read:
                anchor = unquote(parts.fragment)
                if anchor and anchor not in read[target].ids:
                    broken.append((name, link))
            elif not (site / target).exists():
                broken.append((name, link))
    assert broken == []


def test_pages_load_nothing_from_elsewhere(read: dict[str, Page]):
    assert [load for page in read.values() for load in page.loads if urlsplit(load).netloc] == []


def test_every_hook_is_there_with_its_exact_arguments(site: Path, read: dict[str, Page]):
    text = (site / "hooks.html").read_text()
    for group in hook_classes():
        for name, function in inspect.getmembers(group, inspect.isfunction):
            identity = f"kdbench.hookspecs.{group.__name__}.{name}"
            assert identity in read["hooks.html"].ids
            signature = text[text.index(f'id="{identity}"') :].split("</dt>", 1)[0]
            shown = re.findall(r'<em class="sig-param"><span class="n"><span class="pre">(\w+)</span>', signature)
            assert shown == [argument for argument in inspect.signature(function).parameters if argument != "self"]


@pytest.mark.full
def test_the_methods_of_all_papers_take_less_than_a_minute(registry, tmp_path: Path):
    docs = copied(tmp_path / "source")
    extension = docs / "_ext" / "kdbench_docs" / "extension.py"
    many = """
    from dataclasses import replace
    own = list(registry.methods.values())
    for number in range(226 - len(own)):
        method = own[number % len(own)]
        slug = f"{method.slug}_{number}"
        card = replace(method.card, slug=slug)
        registry.methods[card.key] = replace(method, key=card.key, slug=slug, card=card)
    return registry
"""
    text = extension.read_text()
    extension.write_text(text.replace("\n    return registry\n", many, 1))
    assert extension.read_text() != text
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    build(docs, tmp_path / "site")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # of the processor: what else the machine does takes no part
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    assert len(list((tmp_path / "site" / "methods").rglob("*.html"))) >= 226
