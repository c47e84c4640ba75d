"""How old results are: with which code they were made, and what of it has changed since, in one line.

Outcomes carry digests of their method's file, of their task and of every module of kdbench that they used. Those are
compared with what is installed now.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from kdbench.errors import UsageError, plain

if TYPE_CHECKING:
    import duckdb

    from kdbench.registry import Registry


@dataclass(frozen=True)
class Vintage:
    """What results were made with, and how many of them are of something that has changed since."""

    jobs: int
    versions: tuple[str, ...]
    """Of kdbench, the most frequent first."""
    commits: tuple[str, ...]
    """Of its repository, the most frequent first, with a word where there were changes on top."""
    newest: datetime
    """When the last of the jobs ended, naive UTC."""
    old_methods: int
    """Jobs whose method has another file now, or is gone."""
    other_tasks: int
    """Jobs whose task is not defined now as it was for them."""
    old_modules: int
    """Jobs made with another version of a module of kdbench that they used."""

    def line(self) -> str:
        """All of it for people: what they are, then what has changed, each where there is any."""
        made = [f"kdbench {' and '.join(self.versions)}"] if self.versions else []
        if self.commits:
            made.append(f"commit {self.commits[0]}" + (f" and {len(self.commits) - 1} more" * (len(self.commits) > 1)))
        changed = [
            f"{'all' if count == self.jobs else count} {what}"
            for count, what in (
                (self.old_methods, "with an earlier version of their method"),
                (self.other_tasks, "on tasks that are defined otherwise now"),
                (self.old_modules, "with other code of kdbench than is here"),
            )
            if count
        ]
        jobs = f"{self.jobs} job{'s' * (self.jobs != 1)}"
        head = ", ".join([jobs, *made, f"until {self.newest:%Y-%m-%d}"])
        return plain(f"{head}; {', '.join(changed) or 'nothing that they used has changed since'}")


def vintage(con: duckdb.DuckDBPyConnection, registry: Registry) -> Vintage:
    """The vintage of the results in a store, against what ``registry`` has."""
    groups = con.execute(
        "SELECT method, method_digest, task, scale, spec_digest, modules_digest, count(*) FROM store.jobs GROUP BY ALL"
    ).fetchall()
    old_modules = _old_modules(con)
    methods = {key: method.digest for key, method in registry.methods.items()}
    tasks = {(task, scale): _digest_now(registry, task, scale) for _, _, task, scale, *_ in groups}
    jobs = old = other = stale = 0
    for method, method_digest, task, scale, spec_digest, modules, count in groups:
        jobs += count
        old += count * (methods.get(method) != method_digest)
        other += count * (tasks[task, scale] != spec_digest)
        stale += count * (modules in old_modules)
    newest = con.execute("SELECT max(finished_at) FROM store.jobs").fetchone()
    assert newest is not None
    return Vintage(jobs, *_made_with(con), newest[0], old, other, stale)


def _made_with(con: duckdb.DuckDBPyConnection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Versions and commits."""
    versions: Counter[str] = Counter()
    commits: Counter[str] = Counter()
    for version, commit, dirty, count in con.execute(
        "SELECT provenance ->> '$.packages.kdbench', git_commit, git_dirty, count(*) FROM store.jobs GROUP BY ALL"
    ).fetchall():
        versions.update({version: count} if version else {})
        commits.update({commit[:7] + " with uncommitted changes" * bool(dirty): count} if commit else {})
    return tuple(name for name, _ in versions.most_common()), tuple(name for name, _ in commits.most_common())


def _old_modules(con: duckdb.DuckDBPyConnection) -> set[str]:
    """Digests of sets of modules of which any is not what it was."""
    from kdbench.history import module_digest

    rows = con.execute("SELECT modules_digest, module, digest FROM store.modules").fetchall()
    now = {module: module_digest(module) for module in {module for _, module, _ in rows}}
    return {key for key, module, digest in rows if now[module] != digest}


def _digest_now(registry: Registry, task: str, scale: str) -> str | None:
    """Digest of a task as it comes; None where it does not come at this scale any more."""
    from kdbench.spec import digest

    try:
        return digest(registry.task(task, scale).identity())
    except UsageError:
        return None
