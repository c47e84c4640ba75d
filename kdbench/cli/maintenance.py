"""Verbs that keep a machine tidy: rebuild, gc, cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli.common import DEFAULT_RESULTS, Json, Results, complain, print_json, table

if TYPE_CHECKING:
    from kdbench.errors import Problem

Folder = Annotated[Path | None, typer.Option("--cache", metavar="FOLDER", help="Default: $KDBENCH_CACHE or your own.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(rebuild)
    app.command()(gc)
    about = "Teachers and their outputs that were made once: list, move, check.\n\nExample: kdbench cache list"
    cache = typer.Typer(help=about, no_args_is_help=True)
    cache.command("list")(cache_list)
    cache.command("export")(cache_export)
    cache.command("import")(cache_import)
    cache.command("verify")(cache_verify)
    app.add_typer(cache, name="cache")


def rebuild(results: Results = DEFAULT_RESULTS) -> None:
    """Make the DuckDB store anew from the spool.

    Example: kdbench rebuild --results results
    """
    from kdbench.errors import UsageError
    from kdbench.store import duck

    duck.require_results(results)
    problems: list[Problem] = []
    started = time.monotonic()
    try:
        count = duck.rebuild(results, problems=problems)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror or error}", place=str(results)) from error
    for problem in problems:
        complain("warning", problem)
    seconds = time.monotonic() - started
    typer.echo(f"{duck.published_path(results)}: {count} outcomes in {seconds:.1f} s, {len(problems)} left out")


def gc(
    max_cache: Annotated[str, typer.Option("--max-cache", metavar="SIZE", help="What the cache may take.")] = "10GiB",
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="Leave alone what was touched since then.")
    ] = "1h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would go; remove nothing.")] = False,
    cache: Folder = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Free the disk: interrupted jobs, states of old runs, temporary and damaged files, old cache. Never outcomes.

    Example: kdbench gc --older-than 1d --max-cache 5GiB
    """
    from kdbench.errors import Problem, UsageError
    from kdbench.paths import cache_root
    from kdbench.quantities import byte_size, duration, show_bytes
    from kdbench.store import sweep

    try:
        largest, quiet = byte_size(max_cache), duration(older_than)
    except ValueError as error:
        raise UsageError(str(error), place="--max-cache or --older-than") from error
    root = cache if cache is not None else cache_root()
    freed, count = 0, 0
    for remains in [*sweep.of_results(results, quiet), *sweep.of_cache(root, largest, quiet)]:
        try:
            if not dry_run and not sweep.remove(remains):
                continue
        except OSError as error:
            complain("warning", Problem(str(remains.path), f"cannot be removed: {error.strerror or error}"))
            continue
        typer.echo(f"{show_bytes(remains.size):>10}  {remains.path}  ({remains.reason})")
        freed, count = freed + remains.size, count + 1
    typer.echo(f"{'would free' if dry_run else 'freed'} {show_bytes(freed)} in {count} places")


def cache_list(cache: Folder = None, as_json: Json = False) -> None:
    """Entries of the cache, the most recently used first.

    Example: kdbench cache list
    """
    from kdbench.cache import Cache
    from kdbench.quantities import show_bytes, show_duration

    store = Cache(cache)
    found = sorted(store.entries(), key=lambda entry: -entry["used"])
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo(f"{store.root} is empty")
        return
    rows = [
        [
            entry["kind"],
            entry["folder"].name,
            show_bytes(entry["bytes"]),
            show_duration(entry["seconds"]),
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry["used"])),
            _about(entry["key"]),
        ]
        for entry in found
    ]
    table(["kind", "entry", "size", "made in", "last used (UTC)", "of"], rows, right=["size", "made in"])
    typer.echo(f"{len(found)} entries, {show_bytes(sum(entry['bytes'] for entry in found))} in {store.root}")


def _about(key: object) -> str:
    """What an entry is of, as far as its key says it in a few words."""
    from kdbench.errors import plain

    if isinstance(key, dict):
        words = [
            f"{name}={value}" for name, value in key.items() if isinstance(value, str | int) and len(str(value)) < 40
        ]
        return plain(" ".join(words))[:80]
    return plain(key)[:80]


def cache_export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Tar file to write.")],
    kind: Annotated[list[str] | None, typer.Option("--kind", help="This kind only; may be given again.")] = None,
    cache: Folder = None,
) -> None:
    """Write entries into one file, for another machine's cache import.

    Example: kdbench cache export teachers.tar
    """
    from kdbench.paths import cache_root
    from kdbench.quantities import show_bytes
    from kdbench.store import packs

    count, size = packs.export(cache if cache is not None else cache_root(), file, kind or ())
    typer.echo(f"{file}: {count} entries, {show_bytes(size)}")


def cache_import(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Tar file of cache export, or a folder of entries.")],
    cache: Folder = None,
) -> None:
    """Take over entries that another machine exported; each is checked against its digests.

    Example: kdbench cache import teachers.tar
    """
    from kdbench.cache import Cache
    from kdbench.store import packs

    problems: list[Problem] = []
    new, known = packs.take_over(source, Cache(cache), problems)
    for problem in problems:
        complain("warning", problem)
    typer.echo(f"{new} entries taken over, {known} were there, {len(problems)} left out")
    if problems:
        raise typer.Exit(1)


def cache_verify(cache: Folder = None) -> None:
    """Read every entry and compare it with its digests; damaged ones are made anew when they are needed.

    Example: kdbench cache verify
    """
    from kdbench.errors import Problem
    from kdbench.paths import cache_root
    from kdbench.store import packs

    root = cache if cache is not None else cache_root()
    bad = count = 0
    for folder, entry in packs.entries(root):
        count += 1
        reason = "entry.json cannot be read" if entry is None else packs.problem_of(folder)
        if reason is not None:
            bad += 1
            complain("warning", Problem(str(folder), f"damaged: {reason}"))
    typer.echo(f"{count} entries in {root}, {bad} damaged")
    if bad:
        raise typer.Exit(1)
