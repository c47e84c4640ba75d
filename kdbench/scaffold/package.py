"""``kdbench new package``: an installable package of methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdbench import __version__
from kdbench.scaffold import names, templates
from kdbench.scaffold.method import Style, Written, command, method_files
from kdbench.scaffold.writing import write_new

if TYPE_CHECKING:
    from kdbench.registry import Registry

FILES = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
    ".gitignore": "gitignore.jinja",
    ".github/workflows/tests.yml": "tests.yml.jinja",
    "src/{module}/__init__.py": "init.py.jinja",
    "tests/test_package.py": "test_package.py.jinja",
}
"""Files of a package beside its method, and their templates."""


def new_package(
    registry: Registry,
    name: str,
    track: str,
    *,
    method: str = "my_idea",
    style: Style = "loss",
    folder: Path = Path(),
) -> Written:
    """Write the package ``NAME`` into ``folder/NAME``: sources, tests, a suite, a workflow, metadata.

    Raises ``UsageError`` as :func:`kdbench.scaffold.method.new_method` does.
    """
    names.require_track(track, registry)
    templates.require_templates(registry.tracks[track], list(registry.tracks.values()))
    module = names.require_package(name)
    names.require_method(method, registry, track)
    root = folder / name
    parts = method_files(registry.tracks[track], method, style, package=module)
    context = {
        "name": name,
        "title": names.title_of(name),
        "module": module,
        "method": method,
        "key": f"{track}/{method}",
        "track": track,
        "version": __version__,
    }
    wanted = {
        root / place.format(module=module): templates.render(f"kdbench/package/{template}", context)
        for place, template in FILES.items()
    }
    wanted[root / "src" / module / f"{method}.py"] = parts["method"]
    wanted[root / "tests" / f"test_{method}.py"] = parts["test"]
    wanted[root / "suites" / f"{method}.yaml"] = parts["suite"]
    write_new(wanted)
    return Written(
        tuple(wanted),
        (
            (command("cd", root), "its README says what is where"),
            ("pip install -e '.[dev]'", "kdbench finds its methods from then on"),
            ("pytest", "its tests, and whether its method keeps the contract"),
            (command("kdbench", "run", Path("suites", f"{method}.yaml")), "it beside its rivals"),
        ),
    )
