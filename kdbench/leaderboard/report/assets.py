"""The scripts and styles that all pages of a site share, taken out of the packages that carry them.

Everything works from ``file://`` under a policy that allows the site's own files and no evaluation of strings.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

FOLDER = Path("assets")
"""Where they lie in a site."""

_EXPORT = re.compile(r"\bexport\s*\{([^{}]*)\}\s*;?")

_LICENCES = """/*! Vega {vega}, Vega-Lite {lite}, Vega-Embed {embed} and their dependencies
 * Copyright (c) University of Washington Interactive Data Lab and contributors, BSD-3-Clause
 * Copyright (c) Mike Bostock (d3), ISC
 * bundled by vl-convert-python, BSD-3-Clause */
"""


def write_assets(out: Path) -> list[Path]:
    """Write the shared files into ``out/assets``; returns their paths relative to ``out``, sorted.

    ``vega.js`` defines ``vegaEmbed``, ``tables.js`` defines ``DataTable``; the rest is kdbench's own. Raises
    ``RuntimeError`` where the installed packages do not carry what they are expected to.
    """
    files = {"vega.js": vega(), "tables.js": tables(), "tables.css": _datatables("dt_bundle.css")} | own()
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
    return sorted(FOLDER / name for name in files)


def own() -> dict[str, str]:
    """kdbench's own scripts and styles, by name."""
    folder = resources.files("kdbench.leaderboard.report") / FOLDER.name
    return {file.name: file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith((".css", ".js"))}


@cache
def vega() -> str:
    """One script with Vega, its interpreter of expressions, Vega-Lite and Vega-Embed; it takes seconds to bundle.

    The version of Vega-Lite is the one that altair writes specifications for.
    """
    import altair
    import vl_convert

    version = altair.SCHEMA_VERSION.removeprefix("v").rsplit(".", 1)[0]
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    if "window.vegaEmbed" not in bundle:
        raise RuntimeError("the bundle of vl-convert-python does not export vegaEmbed")
    embed = vl_convert.get_vega_embed_version()
    licences = _LICENCES.format(vega=vl_convert.get_vega_version(), lite=version, embed=embed)
    # a function of its own: the top level of the bundle would make thousands of global variables
    return f"{licences}(() => {{{bundle}\n}})();\n"


@cache
def tables() -> str:
    """DataTables with jQuery as one classic script.

    itables carries it as a module, which pages that are opened as files may not import: what it exports becomes a
    global variable instead. Raises ``RuntimeError`` where the bundle does not have the form of one module.
    """
    source = _datatables("dt_bundle.js")
    exports = list(_EXPORT.finditer(source))
    names = [name.strip().partition(" as ") for name in exports[0][1].split(",")] if len(exports) == 1 else []
    jquery = next((inside for inside, _, outside in names if outside == "jQuery"), None)
    if jquery is None:
        raise RuntimeError("the DataTables bundle of itables is not a module with one list of exports, jQuery in it")
    start, end = exports[0].span()
    assign = f"window.DataTable = {jquery}.fn.dataTable;"
    return f'(() => {{"use strict";\n{source[:start]}{assign}{source[end:]}\n}})();\n'


def _datatables(name: str) -> str:
    return (resources.files("itables") / "html" / name).read_text("utf-8")
