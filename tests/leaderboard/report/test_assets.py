"""Shared scripts and styles: whole, classic scripts, without anything from the network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdbench.leaderboard.report import assets

pytest.importorskip("itables")
altair = pytest.importorskip("altair")
pytest.importorskip("vl_convert")

FILES = ("charts.css", "site.css", "site.js", "tables.css", "tables.js", "vega.js")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("site")
    paths = assets.write_assets(out)
    assert paths == [Path("assets") / name for name in FILES]
    assert sorted(file.relative_to(out) for file in out.rglob("*") if file.is_file()) == paths
    return {path.name: (out / path).read_text("utf-8") for path in paths}


def test_every_file_is_there_and_small(written: dict[str, str]) -> None:
    sizes = {name: len(text) for name, text in written.items()}
    assert all(size > 300 for size in sizes.values())
    assert sum(sizes.values()) < 2_500_000
    assert sizes["site.js"] < 30_000


def test_scripts_make_the_names_that_pages_use(written: dict[str, str]) -> None:
    assert written["vega.js"].count("window.vegaEmbed") == 1
    assert written["tables.js"].count("window.DataTable = ") == 1
    for name in ("vegaEmbed", "DataTable"):
        assert name in written["site.js"]


@pytest.mark.parametrize("name", ["vega.js", "tables.js", "site.js"])
def test_scripts_are_no_modules_and_make_no_other_globals(written: dict[str, str], name: str) -> None:
    script = written[name]
    assert not re.search(r"(?:^|[;}])\s*(?:import|export)\b\s*[{*\"']", script)
    body = re.sub(r"/\*.*?\*/|//[^\n]*", "", script[:2000], flags=re.DOTALL).strip().removeprefix('"use strict";')
    assert body.strip().startswith("(() => {")
    assert script.rstrip().endswith("})();")


def test_licences_go_along(written: dict[str, str]) -> None:
    assert "BSD-3-Clause" in written["vega.js"]
    assert "datatables.net/license" in written["tables.js"]


def test_styles_load_nothing(written: dict[str, str]) -> None:
    for name in (name for name in FILES if name.endswith(".css")):
        assert "@import" not in written[name]
        assert [url for url in re.findall(r"url\(([^)]*)\)", written[name]) if not url.startswith("data:")] == []


def test_the_bundle_has_the_vega_lite_that_altair_writes_for(written: dict[str, str]) -> None:
    major_minor = altair.SCHEMA_VERSION.removeprefix("v").rsplit(".", 1)[0]
    assert f"Vega-Lite {major_minor}" in written["vega.js"][:400]


def test_tables_of_another_form_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("var a = 1;", "export{a as jQuery};export{b as other};", "export{a as other};"):
        monkeypatch.setattr(assets, "_datatables", lambda name, source=source: source)
        assets.tables.cache_clear()
        with pytest.raises(RuntimeError, match="not a module with one list of exports"):
            assets.tables()
    monkeypatch.setattr(assets, "_datatables", lambda name: "var a = 1; export { a as jQuery, b as c };\n/* end */")
    assets.tables.cache_clear()
    assert "window.DataTable = a.fn.dataTable;\n/* end */" in assets.tables()
    monkeypatch.undo()
    assets.tables.cache_clear()
