"""One Chromium and one site for all tests of pages, and a page that fails where a site must not do something."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from tests.helpers import site

TASKS = ("digits-gap", "shapetex", "selfdistill", "text", "instruct")
"""Parts of the names of the shipped tasks that have results."""


def chromium() -> Path | None:
    """The browser: ``$KDBENCH_CHROMIUM``, or the first on the PATH."""
    named = os.environ.get("KDBENCH_CHROMIUM")
    if named:
        return Path(named)
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((Path(path) for path in found if path), None)


# Scope "package": while Playwright runs, its event loop does, and nothing else may run one in the process.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None or not path.exists():
        reason = f"there is no Chromium ({path or 'none on the PATH'}); KDBENCH_CHROMIUM may name one"
        if os.environ.get("KDBENCH_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"],
        )
        yield started
        started.close()


@dataclass(frozen=True)
class Site:
    """A site and the results that it was made of."""

    results: Path
    folder: Path

    def url(self, path: str) -> str:
        """Of a page, with an anchor or a query."""
        name, mark, rest = path.partition("?")
        return (self.folder / name).as_uri() + mark + rest

    def pages(self, pattern: str) -> list[str]:
        """Pages whose path fits, such as ``tasks/*.html``."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.glob(pattern))


def make(folder: Path, fill: Callable[[Path], Any]) -> Site:
    """The site of what ``fill(results)`` leaves, made once by all test processes together."""
    from kdbench.leaderboard.report.site import build

    made = Site(folder / "results", folder / "site")
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "done").exists():
            fill(made.results)
            build(made.results, made.folder)
            (folder / "done").touch()
    return made


@pytest.fixture(scope="package")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "sites"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture(scope="package")
def shipped(sites: Path) -> Site:
    """Methods that are installed, on some of the tasks that are."""
    return make(sites / "shipped", lambda results: site.shipped(results, TASKS, seeds=3))


@pytest.fixture(scope="package")
def hostile(sites: Path) -> Site:
    """Texts that attack."""
    return make(sites / "hostile", site.hostile)


def go(page: Page, of: Site, path: str) -> None:
    """Open a page of a site and wait until its tables and charts are there."""
    page.goto(of.url(path))
    page.wait_for_function("document.documentElement.dataset.ready === 'true'")


@dataclass
class Watched:
    """What pages did that no page of a site may do."""

    root: str = ""
    wrong: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self, context: BrowserContext) -> None:
        """Note requests, errors and dialogs of every page of the context."""
        context.on("request", self._request)
        context.on("page", self._page)
        context.on("weberror", lambda error: self.wrong.append(f"exception: {error.error}"))
        context.on("requestfailed", self._failed)
        context.on("console", self._console)

    def _request(self, request: Request) -> None:
        self.requests.append(request.url)
        parts = urlsplit(request.url)
        inside = parts.scheme == "file" and unquote(parts.path).startswith(self.root)
        if not inside and parts.scheme not in ("data", "blob", "about"):
            self.wrong.append(f"request: {request.url}")

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left while it loaded
            self.wrong.append(f"failed: {request.url} {request.failure}")

    def _page(self, page: Page) -> None:
        def refuse(dialog: Any) -> None:
            self.wrong.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("dialog", refuse)
        page.on("download", lambda download: self.wrong.append(f"download: {download.url}"))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console: {message.text}")


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def open_page(browser: Browser, watched: Watched) -> Iterator[Callable[..., Page]]:
    """``open_page(site, path, **context)``: a page in a context of its own, without a network.

    The test fails where the page asked for anything outside of its site, opened a dialog, wrote an error or a warning,
    or raised one.
    """
    contexts = []

    def opened(of: Site, path: str, **options: Any) -> Page:
        context = browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(10_000)
        contexts.append(context)
        watched.root = f"{of.folder}/"
        watched.watch(context)
        page = context.new_page()
        go(page, of, path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not watched.wrong, "\n".join(watched.wrong[:10])
