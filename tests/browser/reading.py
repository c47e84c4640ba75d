"""What a page shows, read out of a browser."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page

_COLUMN = """(table, title) => {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const at = heads.findIndex(head => head.innerText.trim().toLowerCase().startsWith(title.toLowerCase()));
  if (at < 0) throw new Error(`no column ${title} among ${heads.map(head => head.innerText)}`);
  return [...table.tBodies[0].rows].map(row => [row.cells[at].innerText.trim(), row.cells[at].dataset.order ?? null]);
}"""

_WIDER = """() => {
  const limit = document.documentElement.clientWidth;
  const wide = [...document.querySelectorAll("body *")].filter(element => {
    for (let up = element; up; up = up.parentElement)
      if (getComputedStyle(up).overflowX !== "visible" && up !== element) return false;
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.right > limit + 1;
  });
  return {
    by: document.documentElement.scrollWidth - limit,
    elements: wide.slice(0, 5).map(element => element.outerHTML.slice(0, 120)),
  };
}"""

_ACTIVE = """() => {
  const found = [];
  for (const element of document.querySelectorAll("*")) {
    if (["IFRAME", "OBJECT", "EMBED", "BASE"].includes(element.tagName)) found.push(element.outerHTML.slice(0, 200));
    for (const attribute of element.attributes) {
      if (attribute.name.startsWith("on")) found.push(`${attribute.name}=${attribute.value}`.slice(0, 200));
      if (["href", "src", "action", "xlink:href", "formaction"].includes(attribute.name)
          && /^\\s*(javascript|vbscript|data:text)/i.test(attribute.value)) found.push(attribute.value.slice(0, 200));
    }
    if (element.tagName === "SCRIPT" && !element.src && element.type !== "application/json")
      found.push(element.outerHTML.slice(0, 200));
  }
  return found;
}"""


def column(table: Locator, title: str) -> list[str]:
    """Texts of a column's cells, from the first row that is shown to the last; ``title``: how its header begins."""
    return [text for text, _ in table.evaluate(_COLUMN, title)]


def numbers(table: Locator, title: str) -> list[float | None]:
    """The values that a column is sorted by; None in cells without one."""
    orders = [order for _, order in table.evaluate(_COLUMN, title)]
    return [None if order in (None, "") else float(order) for order in orders]


def header(table: Locator, title: str) -> Locator:
    """The header of a column."""
    return table.locator("thead th").filter(has_text=title).first


def sideways(page: Page) -> dict[str, Any]:
    """By how many pixels the page is wider than the window, and which elements reach out of it."""
    found: dict[str, Any] = page.evaluate(_WIDER)
    return found


def active(page: Page) -> list[str]:
    """What could run in the page although no site puts it there: frames, handlers, inline scripts, links to scripts."""
    found: list[str] = page.evaluate(_ACTIVE)
    return found


def text(page: Page) -> str:
    """The text of the page, white space as single spaces."""
    return " ".join(page.locator("body").inner_text().split())
