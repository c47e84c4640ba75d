"""``pytest --kdbench-method=FILE_OR_SLUG``: the conformance kit as tests, one per check.

pytest loads this wherever kdbench is installed, so that nothing is imported before the option is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kdbench.conformance.evidence import Evidence


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("kdbench").addoption(
        "--kdbench-method",
        action="append",
        default=[],
        metavar="FILE|SLUG",
        help="Check that a method keeps the contract of kdbench; may be given again.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what is no method before anything runs."""
    names = config.getoption("--kdbench-method", default=[])
    if not names:
        return
    from kdbench.conformance.subjects import subjects
    from kdbench.errors import UsageError

    try:
        config.stash[_SUBJECTS] = subjects(names)
    except UsageError as error:
        raise pytest.UsageError("\n".join(str(problem) for problem in error.problems)) from error


_SUBJECTS: pytest.StashKey[Any] = pytest.StashKey()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each check of each method."""
    if _SUBJECTS not in config.stash:
        return
    registry, methods = config.stash[_SUBJECTS]
    for method in methods:
        items.extend(_Method.from_parent(session, name=method.key, registry=registry, method=method).collect())


class _Method(pytest.Collector):
    """A method, whose checks share their runs."""

    def __init__(self, *, registry: Any, method: Any, **rest: Any) -> None:
        super().__init__(**rest)
        self.registry = registry
        self.method = method
        self._evidence: Evidence | None = None

    def collect(self) -> Iterator[pytest.Item]:
        from kdbench.conformance.checks import CHECKS

        for name in CHECKS:
            yield _Check.from_parent(self, name=name)

    def evidence(self) -> Evidence:
        if self._evidence is None:
            import tempfile

            from kdbench.conformance.evidence import Evidence, smallest_task

            spec = smallest_task(self.registry, self.method)
            folder = tempfile.TemporaryDirectory(prefix="kdbench-")
            self.config.add_cleanup(folder.cleanup)
            self._evidence = Evidence(self.registry, self.method, spec, Path(folder.name))
        return self._evidence


class _Failed(Exception):
    """A check that failed, as pytest shows it: without a traceback of the kit."""


class _Check(pytest.Item):
    """One check of a method."""

    parent: _Method

    def runtest(self) -> None:
        from kdbench.conformance.checks import CHECKS, finding

        found = finding(self.name, CHECKS[self.name], self.parent.evidence())
        if found.state == "does not apply":
            pytest.skip(found.message)
        if found.state == "failed":
            raise _Failed(f"{found.message}\nwhat to change: {found.advice}" if found.advice else found.message)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, _Failed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.parent.method.path, self.parent.method.line - 1, f"{self.parent.name}: {self.name}"
