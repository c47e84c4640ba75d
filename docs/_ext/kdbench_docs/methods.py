"""A page for each method, of the context that the pages of ``kdbench report`` are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kdbench.bibtex import bibliography
from kdbench.leaderboard.report.method_page import method_context
from kdbench.registry import Registry
from kdbench_docs import markdown

TEMPLATES = Path(__file__).with_name("templates")


def pages(registry: Registry) -> dict[str, str]:
    """Path below the folder of the documentation, without ending, to Markdown: the methods and their indices."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"md": markdown.text, "code": markdown.code, "block": markdown.block, "claimed": _claimed}
    method_page, index = environment.get_template("method.md"), environment.get_template("methods.md")
    made = {"methods/index": index.render(tracks=[_track(registry, name) for name in registry.tracks])}
    for key, method in registry.methods.items():
        context = method_context(registry, key)
        made[f"methods/{key}"] = method_page.render(context, bibtex=bibliography([method.card]))
    return made


def _track(registry: Registry, name: str) -> dict[str, object]:
    own = [method for method in registry.methods.values() if method.track == name]
    return {"name": name, "title": registry.tracks[name].title, "slugs": [method.slug for method in own]}


def _claimed(side: str | dict[str, Any] | float) -> str:
    """A side of a claim: a method, perhaps with parameters, or a number."""
    if not isinstance(side, dict):
        return markdown.code(side)
    params = ", ".join(f"{name}={json.dumps(value)}" for name, value in side.get("params", {}).items())
    return markdown.code(f"{side['method']}({params})" if params else side["method"])


def write(registry: Registry, folder: Path) -> None:
    """Bring the pages in ``folder`` up to date; what has not changed is not touched, what is gone is removed."""
    made = {folder / f"{name}.md": page for name, page in pages(registry).items()}
    for path, page in made.items():
        if not path.exists() or path.read_text() != page:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page)
    for path in (folder / "methods").rglob("*.md"):
        if path not in made:
            path.unlink()
