"""The extension of Sphinx: writes the pages of methods, and puts generated parts into the pages that ask for them."""

from __future__ import annotations

import os
from typing import Any

from sphinx.application import Sphinx

from kdbench.registry import Registry, discover
from kdbench_docs import methods, reference


def own() -> Registry:
    """What comes with kdbench; nobody's drop-in plugins and no other package's."""
    before = os.environ.get("KDBENCH_PLUGINS")
    os.environ["KDBENCH_PLUGINS"] = ""
    try:
        registry = discover()
    finally:
        if before is None:
            del os.environ["KDBENCH_PLUGINS"]
        else:
            os.environ["KDBENCH_PLUGINS"] = before
    registry.methods = {key: method for key, method in registry.methods.items() if method.source == "built-in"}
    return registry


def setup(app: Sphinx) -> dict[str, Any]:
    registry = own()

    def begin(app: Sphinx) -> None:
        methods.write(registry, app.srcdir)

    def read(app: Sphinx, name: str, source: list[str]) -> None:
        source[0] = reference.expanded(source[0], registry)

    def changed(app: Sphinx, *others: Any) -> list[str]:
        """Pages with generated parts are read anew: what they are made of is the code."""
        return [name for name in app.env.found_docs if "<!-- generated:" in app.env.doc2path(name).read_text()]

    app.connect("builder-inited", begin)
    app.connect("source-read", read)
    app.connect("env-get-outdated", changed)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
