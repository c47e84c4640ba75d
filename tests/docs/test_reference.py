"""Everything there is to know is documented: verbs, options, keys, columns, codes, variables, methods."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import typer.main

import kdbench
from kdbench import checkup
from kdbench.catalog import spec_class
from kdbench.cli import make_app
from kdbench.cli.common import ExitCode
from kdbench.job import Status
from kdbench.store.views import VIEWS
from kdbench.suite import Suite
from tests.helpers.documents import ROOT, hook_classes, named, rows, section

# --- command line -----------------------------------------------------------------------------------------------------


def verbs() -> Iterator[tuple[str, Any]]:
    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for verb, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {verb}", inner)

    return walk("kdbench", typer.main.get_command(make_app()))


@pytest.mark.parametrize(("name", "command"), [pytest.param(*verb, id=verb[0]) for verb in verbs()])
def test_every_verb_is_documented_with_all_it_takes(name: str, command: click.Command, pages: dict[str, str]):
    text = section(pages["cli"], f"`{name}`")
    assert " ".join((command.help or "").split("\n\n")[0].split())[:40] in " ".join(text.split())
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            for option in parameter.opts if parameter.param_type_name == "option" else [parameter.human_readable_name]:
                assert option in text


# --- suites and tasks -------------------------------------------------------------------------------------------------


def test_every_key_of_a_suite_is_documented(pages: dict[str, str]):
    keys = named(section(pages["suites"], "The file"))
    assert set(keys) == set(Suite.model_fields)
    assert all(meaning for *_, meaning in keys.values())


def test_every_key_of_the_parts_of_a_suite_is_documented(pages: dict[str, str]):
    from kdbench_docs.models import models

    parts = models(Suite)
    assert len(parts) >= 6
    described = section(pages["suites"], "Keys")
    for part in parts:
        table = next(
            set(named(chunk)) for chunk in described.split("### ") if set(part.model_fields) <= set(named(chunk))
        )
        assert table >= set(part.model_fields)


def test_what_a_validator_reads_is_what_the_page_says(pages: dict[str, str]):
    keys = named(section(pages["suites"], "The file"))
    assert keys["seeds"][1] == "integer or list of integers"
    assert keys["timeout"][1] == "time or null"
    assert named(section(pages["suites"], "Resources"))["memory"][1] == "size or null"


def test_every_track_has_a_page_with_all_its_tasks_metrics_and_fields(registry, pages: dict[str, str]):
    assert registry.tracks
    for track in registry.tracks:
        page = pages[f"tracks/{track}"]
        for heading in ("Substrate", "Protocol", "Baselines", "Traps"):
            assert len(section(page, heading)) > 200
        tasks = [entry for entry in registry.tasks() if entry.track == track]
        assert set(named(section(page, "Tasks"))) >= {entry.name.split("/", 1)[1] for entry in tasks}
        metrics = named(section(page, "Metrics"))
        for entry in tasks:
            largest = registry.task(entry.name, entry.scales[-1])
            assert {metric.name for metric in largest.all_metrics()} <= set(metrics)
        assert set(spec_class(registry.tracks[track]).model_fields) <= set(named(section(page, "Fields of a task")))


def test_the_baselines_that_a_page_names_are_methods_of_the_track(registry, pages: dict[str, str]):
    for track in registry.tracks:
        slugs = re.findall(r"`([a-z_]+)`", section(pages[f"tracks/{track}"], "Baselines"))
        assert slugs
        assert [slug for slug in slugs if f"{track}/{slug}" not in registry.methods] == []


# --- methods ----------------------------------------------------------------------------------------------------------


def test_every_method_has_a_page_of_its_card_parameters_and_docstring(registry):
    from kdbench_docs import markdown, methods

    made = methods.pages(registry)
    assert set(made) == {"methods/index", *(f"methods/{key}" for key in registry.methods)}
    for key, method in registry.methods.items():
        page = made[f"methods/{key}"]
        assert markdown.text(method.card.title) in page
        params = named(section(page, "Parameters")) if method.fields else {}
        assert set(params) >= {field.name for field in method.fields}
        for field in method.fields:
            assert markdown.text(field.description) in page
        for claim in method.card.claims:
            assert markdown.text(claim.note) in page
        for departure in getattr(method.card, "departures", ()):
            assert markdown.text(departure) in page
        first = " ".join(method.doc.strip().split("\n\n")[0].split())
        assert markdown.text(first) in page


def test_texts_of_cards_are_no_markup():
    from kdbench_docs import markdown

    assert markdown.text("a*b*c [x](y) <i> $z$ ``code_name`` :class:`~kd.Task`") == (
        r"a\*b\*c \[x\](y) \<i\> \$z\$ `code_name` `kd.Task`"
    )
    assert markdown.table(["a"], [[markdown.code("x | y")]]).endswith("| `x \\| y` |\n")


def test_pages_are_written_only_where_they_changed(registry, tmp_path: Path):
    from kdbench_docs import methods

    methods.write(registry, tmp_path)
    key = next(iter(registry.methods))
    page, gone = tmp_path / "methods" / f"{key}.md", tmp_path / "methods" / "llm" / "gone.md"
    gone.write_text("# gone")
    before = page.stat().st_mtime_ns
    methods.write(registry, tmp_path)
    assert page.stat().st_mtime_ns == before
    assert not gone.exists()


# --- hooks and Python -------------------------------------------------------------------------------------------------


def test_every_group_of_hooks_is_on_the_page(pages: dict[str, str]):
    assert len(hook_classes()) == 3
    for group in hook_classes():
        assert f".. autoclass:: kdbench.hookspecs.{group.__name__}\n   :members:" in pages["hooks"]


def test_everything_that_is_imported_from_kdbench_is_documented(pages: dict[str, str]):
    for name in set(kdbench.__all__) - {"__version__"}:
        assert re.search(rf"\.\. (?:auto|py:)\w+:: kdbench\.(?:\w+\.)*{name}\b", pages["api"]), name


# --- results ----------------------------------------------------------------------------------------------------------


def test_every_view_and_column_is_documented(pages: dict[str, str]):
    for view in VIEWS:
        columns = named(section(pages["querying"], f"`{view.name}`"))
        assert list(columns) == [column.name for column in view.columns]
        assert all(meaning for _, meaning in columns.values())


# --- codes, variables, packages ---------------------------------------------------------------------------------------


def test_every_exit_code_is_documented(pages: dict[str, str]):
    codes = {row[0].strip("`"): row for row in rows(pages["exit-codes"])}
    for code in ExitCode:
        assert codes[str(int(code))][1] == f"`{code.name}`"
        assert codes[str(int(code))][2]


def test_every_status_of_an_outcome_is_documented(pages: dict[str, str]):
    assert set(get_args(Status)) <= set(named(pages["exit-codes"]))


TABLES = ("ONE_THREAD", "REPEATABLE", "ENVIRONMENT", "OFFLINE")
"""Mappings and lists of variables in the sources."""
PRIVATE = {"KDBENCH_TRACKING_URI", "RAY_JOB_CONFIG_JSON_ENV_VAR"}
"""Variables by which processes talk to each other, not people to them."""


def constants(trees: Iterable[ast.Module]) -> dict[str, str]:
    """Texts that modules have names for."""
    return {
        node.targets[0].id: node.value.value
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def variables(tree: ast.Module, known: dict[str, str]) -> Iterator[str]:
    """Environment variables of a module: what it asks ``os.environ`` for, and tables for processes."""
    for node in ast.walk(tree):
        keys: list[ast.AST] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("os.environ.", "os.getenv")):
            keys = list(node.args[:1])
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            keys = [node.slice]
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
            keys = [node.left]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in TABLES:
            texts = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
            yield from (
                text for text in texts if isinstance(text, str) and re.fullmatch(r"[A-Z]+_[A-Z0-9_]+|[A-Z]{6,}", text)
            )
        for key in keys:
            if isinstance(key, ast.Constant):
                yield str(key.value)
            elif isinstance(key, ast.Name) and key.id in known:
                yield known[key.id]


def test_every_environment_variable_is_documented(pages: dict[str, str]):
    sources = [path.read_text() for path in (ROOT / "kdbench").rglob("*.py")]
    trees = [ast.parse(text) for text in sources if any(word in text for word in ("environ", *TABLES))]
    known = constants(trees)
    read = {name for tree in trees for name in variables(tree, known)}
    assert {"KDBENCH_CACHE", "KDBENCH_PLUGINS", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "RAY_ADDRESS"} <= read
    documented = set(re.findall(r"`(\w+)`", pages["environment"]))
    assert read - documented - PRIVATE == set()


def test_every_variable_of_kdbench_that_is_documented_is_read(pages: dict[str, str]):
    sources = "".join(
        path.read_text() for folder in ("kdbench", "tests/browser") for path in (ROOT / folder).rglob("*.py")
    )
    for name in set(re.findall(r"KDBENCH_\w+", "".join(pages.values()))):
        assert name in sources


def test_every_extra_is_documented(pages: dict[str, str]):
    said = section(pages["quickstart"], "Optional packages")
    assert {f"kdbench[{extra}]" for extra in checkup.EXTRAS} <= set(named(said))
