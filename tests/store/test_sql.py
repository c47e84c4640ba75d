"""``kdbench sql`` reads the results and nothing else."""

from __future__ import annotations

import math
import os
import pickle
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from kdbench.errors import UsageError
from kdbench.store import duck, fresh, sandbox, sql
from tests.helpers.outcomes import grid, put


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    put(folder, grid({"kd": [0.5, 0.7]}))
    time.sleep(fresh.RACY / 1e9 + 0.1)  # so that a store that is up to date is known to be
    duck.sync(folder)
    return folder


def test_a_query(results: Path) -> None:
    columns, rows = sql.run(results, "SELECT label, avg(score) AS score FROM jobs GROUP BY label")
    assert (columns, rows) == (["label", "score"], [("kd", pytest.approx(0.6))])


@pytest.mark.parametrize(
    "query", ["DESCRIBE jobs", "SHOW TABLES", "SUMMARIZE metrics", "EXPLAIN FROM jobs", "VALUES (1)"]
)
def test_other_ways_to_ask(results: Path, query: str) -> None:
    assert sql.run(results, query)[1]


SECRET = "hidden from queries"
"""In files beside the results and in the environment: no answer and no message may hold it."""

ATTACKS = {
    "files": [
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_csv_auto('{secret}')",
        "SELECT * FROM read_json('{secret}')",
        "SELECT * FROM read_json_objects('{secret}')",
        "SELECT * FROM read_ndjson('{secret}')",
        "SELECT * FROM read_parquet('{secret}')",
        "SELECT * FROM parquet_metadata('{secret}')",
        "SELECT * FROM parquet_schema('{secret}')",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM read_text(['{secret}', '{secret}'])",
        "SELECT * FROM read_duckdb('{other}')",
        "SELECT * FROM sniff_csv('{secret}')",
        "SELECT * FROM '{secret}'",
        'SELECT * FROM "{secret}"',
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/proc/self/environ')",
        "SELECT * FROM read_text('/dev/stdin')",
        "SELECT * FROM read_text('file://{secret}')",
        "SELECT * FROM read_csv('https://example.org/a.csv')",
        "SELECT * FROM 's3://bucket/a.parquet'",
        "SELECT * FROM sqlite_scan('{secret}', 't')",
        "SELECT * FROM postgres_scan('host=localhost', 'public', 't')",
        "SELECT * FROM st_read('{secret}')",
        "SELECT * FROM read_xlsx('{secret}')",
        "SELECT * FROM duckdb_secrets()",
    ],
    "paths around what is allowed": [
        "SELECT * FROM read_text('{database}/../secret.csv')",
        "SELECT * FROM read_text('{database}.tmp/../../secret/secret.csv')",
        "SELECT * FROM read_text('{database}.wal/../secret.csv')",
        "SELECT * FROM glob('{database}.tmp/../*')",
        "SELECT * FROM '../secret.csv'",
        "SELECT * FROM read_blob('../../../../../../etc/passwd')",
    ],
    "files by way of something else": [
        "WITH a AS (SELECT * FROM read_text('{secret}')) SELECT * FROM jobs, a",
        "WITH jobs AS (SELECT * FROM read_csv('{secret}')) SELECT * FROM jobs",
        "WITH RECURSIVE r AS (SELECT content FROM read_text('{secret}') UNION ALL SELECT * FROM r) SELECT * FROM r",
        "WITH a AS MATERIALIZED (FROM '{secret}') FROM a",
        "SELECT (SELECT content FROM read_text('{secret}'))",
        "SELECT * FROM jobs WHERE id IN (SELECT content FROM read_text('{secret}'))",
        "SELECT * FROM jobs UNION ALL BY NAME SELECT * FROM '{secret}'",
        "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
        "SELECT * FROM query_table('{secret}')",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{secret}'')'))",
        "PIVOT '{secret}' ON a",
        "SUMMARIZE SELECT * FROM '{secret}'",
        "DESCRIBE SELECT * FROM '{secret}'",
        "EXPLAIN ANALYZE SELECT * FROM read_text('{secret}')",
        "FROM (DESCRIBE SELECT * FROM '{secret}')",
        "SELECT * FROM jobs, LATERAL (SELECT * FROM read_text('{secret}'))",
        "SELECT * FROM jobs POSITIONAL JOIN '{secret}'",
    ],
    "writing": [
        "COPY jobs TO '{outside}'",
        "COPY (SELECT 1) TO '{outside}' (FORMAT parquet)",
        "COPY store.jobs FROM '{secret}'",
        "EXPORT DATABASE '{outside}'",
        "IMPORT DATABASE '{folder}'",
        "INSERT INTO store.jobs SELECT * FROM store.jobs",
        "WITH a AS (SELECT 1) INSERT INTO store.meta SELECT 'a', 'b'",
        "UPDATE store.jobs SET score = 1",
        "DELETE FROM store.jobs",
        "TRUNCATE store.jobs",
        "MERGE INTO store.meta USING store.meta AS m ON m.key = meta.key WHEN MATCHED THEN DELETE",
        "DROP VIEW jobs",
        "DROP TABLE store.jobs",
        "ALTER TABLE store.jobs ADD COLUMN a INTEGER",
        "COMMENT ON VIEW jobs IS 'x'",
        "CREATE TABLE mine (a INTEGER)",
        "CREATE TEMP TABLE mine AS SELECT 1",
        "CREATE OR REPLACE VIEW jobs AS SELECT 1",
        "CREATE MACRO f(x) AS x",
        "CREATE SECRET (TYPE s3)",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{outside}'",
        "EXPLAIN ANALYZE DELETE FROM store.jobs",
        "SELECT * FROM force_checkpoint()",
        "CHECKPOINT",
        "VACUUM",
        "ANALYZE",
    ],
    "other databases": [
        "ATTACH '{outside}' AS other",
        "ATTACH '{other}' AS other",
        "ATTACH ':memory:' AS other",
        "ATTACH '' AS other",
        "USE memory",
        "DETACH kdbench",
        "SELECT * FROM other.main.t",
    ],
    "extensions": ["INSTALL httpfs", "FORCE INSTALL httpfs", "LOAD httpfs", "LOAD '{secret}'", "UPDATE EXTENSIONS"],
    "settings": [
        "SET enable_external_access = true",
        "SET GLOBAL enable_external_access = true",
        "RESET enable_external_access",
        "SET lock_configuration = false",
        "SET memory_limit = '1TB'",
        "SET VARIABLE a = 1",
        "PRAGMA enable_external_access = true",
        "PRAGMA database_list",
        "PRAGMA enable_profiling",
        "CALL pragma_version()",
        "CALL enable_logging()",
        "SELECT * FROM enable_logging()",
        "SELECT * FROM enable_profiling()",
        "SELECT * FROM pragma_database_list()",
        "SELECT getenv('KDBENCH_SECRET')",
        "SELECT current_setting('getenv')",
    ],
    "objects of the program": ["SELECT * FROM secret", "SELECT * FROM secret_table", "SELECT * FROM results"],
    "more than one": [
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW jobs",
        "SELECT 1;;SELECT 2;",
        "/* SELECT 1; */ DROP VIEW jobs -- ;",
        "BEGIN",
        "COMMIT",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "DEALLOCATE p",
    ],
    "no query": [
        *("", "   -- nothing", ";", "SELEKT 1", "SELECT nothing FROM jobs"),
        *("\x00", "SELECT '\x00", "'", "/*", "((((((((("),
    ],
}
TOO_DEEP = {
    "parentheses": "SELECT " + "(" * 50_000 + "1" + ")" * 50_000,
    "sums": "SELECT " + "+".join(["1"] * 50_000),
    "negations": "SELECT " + "NOT " * 50_000 + "true",
    "lists": "SELECT " + "[" * 9000 + "]" * 9000,
    "queries": "SELECT * FROM " + "(SELECT * FROM " * 3000 + "jobs" + ")" * 3000,
}


@dataclass(frozen=True)
class Scene:
    """Results, and around them what no query may reach."""

    results: Path
    root: Path

    @property
    def places(self) -> dict[str, Path]:
        secret = self.root / "secret"
        return {
            "secret": secret / "secret.csv",
            "folder": secret,
            "other": secret / "other.duckdb",
            "outside": self.root / "outside",
            "database": duck.published_path(self.results),
        }

    def state(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    root = tmp_path_factory.mktemp("scene")
    scene = Scene(root / "results", root)
    put(scene.results, grid({"kd": [0.5, 0.7]}))
    duck.sync(scene.results)
    (root / "secret").mkdir()
    scene.places["secret"].write_text(f"a,b\n{SECRET},2\n")
    with duckdb.connect(str(scene.places["other"])) as con:
        con.execute("CREATE TABLE t AS SELECT ? AS a", [SECRET])
    return scene


class Answer:
    """What the process of a query would send."""

    def __init__(self) -> None:
        self.frames: list[tuple[Any, ...]] = []

    def send_bytes(self, data: bytes) -> None:
        self.frames.append(pickle.loads(data))


def asked(scene: Scene, query: str) -> list[tuple[Any, ...]]:
    """The answer that the process would give, but in this one: a hundred of them take a while."""
    answer = Answer()
    secret_table = pa.table({"a": [SECRET]})
    assert secret_table.num_rows == 1  # in sight of a search for variables
    try:
        with duck.connect(scene.results) as con:
            sandbox.answer(con, query.format(**scene.places), answer)  # type: ignore[arg-type]
    except duckdb.Error as error:
        answer.frames.append(("error", str(error)))
    return answer.frames


@pytest.mark.parametrize("query", [query for queries in ATTACKS.values() for query in queries], ids=lambda q: q[:60])
def test_attacks(scene: Scene, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_SECRET", SECRET)
    before = scene.state()
    *frames, (kind, *content) = asked(scene, query)
    assert kind in ("refused", "error")
    assert SECRET not in str([frames, content])
    assert scene.state() == before


@pytest.mark.parametrize(
    "query", [queries[0] for queries in ATTACKS.values()] + list(TOO_DEEP.values()), ids=[*ATTACKS, *TOO_DEEP]
)
def test_attacks_are_refused_with_one_line(
    scene: Scene, query: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KDBENCH_SECRET", SECRET)
    sql.run(scene.results, "SELECT 1")
    before = {path: text for path, text in scene.state().items() if not path.endswith(fresh.SEEN)}
    with pytest.raises(UsageError) as caught:
        sql.run(scene.results, query if query in TOO_DEEP.values() else query.format(**scene.places), seconds=30)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1000
    assert SECRET not in message + "".join(capfd.readouterr())
    assert {path: text for path, text in scene.state().items() if not path.endswith(fresh.SEEN)} == before
    assert sql.run(scene.results, "SELECT count(*) AS n FROM jobs") == (["n"], [(2,)])


def test_what_a_query_may_know_of_the_place_is_the_store_alone(results: Path) -> None:
    found = sql.run(results, "SELECT path FROM duckdb_databases() WHERE path IS NOT NULL")[1]
    assert found == [(str(duck.published_path(results).absolute()),)]
    query = "SELECT value FROM duckdb_settings() WHERE name IN ('allowed_directories', 'allowed_paths')"
    for (text,) in sql.run(results, query)[1]:
        for path in re.findall(r"[^\s,\[\]]+", text):
            assert path.startswith(str(duck.published_path(results).absolute()))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT sum(a.i * b.i) FROM range(1000000) a(i), range(1000000) b(i)",
        "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r",
        "SELECT i, repeat('x', 1000) FROM range(1000000000000) t(i)",
        "SELECT sleep_ms(1000000)",
        # interrupts do not reach into one function
        "SELECT length(repeat('ab', 400000000)), length(replace(repeat('ab', 200000000), 'a', 'bcdefgh'))",
    ],
)
def test_time_limit(results: Path, query: str) -> None:
    sql.run(results, "SELECT 1")
    started = time.monotonic()
    with pytest.raises(UsageError, match="took longer than"):
        sql.run(results, query, seconds=0.3)
    assert time.monotonic() - started < 30  # of which most is for the start of a process on a busy machine


@pytest.mark.parametrize(
    "query",
    [
        "SELECT list(i)[7] FROM range(1000000000) t(i)",
        "SELECT length(repeat('x', 4000000000))",
        "SELECT count(*) FROM (SELECT unnest(range(600000000)))",
        "SELECT i, list(j) FROM range(100000) a(i), range(100000) b(j) GROUP BY i",
    ],
)
def test_memory_limit(results: Path, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MEMORY_LIMIT", 2**30)
    monkeypatch.setitem(duck.OPEN, "memory_limit", "300MB")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match="Out of Memory|needs more memory|ended its process"):
        sql.run(results, query, seconds=60)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
    assert sql.run(results, "SELECT 1")[1] == [(1,)]


def test_row_limit(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MOST_ROWS", 20_000)
    with pytest.raises(UsageError, match="more than 20,000 rows"):
        sql.run(results, "SELECT * FROM range(30000)")


def test_size_limit(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MOST_BYTES", 50 * 2**20)
    with pytest.raises(UsageError, match="larger than 50 MiB"):
        sql.run(results, "SELECT repeat('x', 10000) || i FROM range(1000000) t(i)")


def test_values_of_all_kinds_arrive(results: Path) -> None:
    query = (
        "SELECT 1::HUGEINT, 1.5::DECIMAL(9, 2), 'a', NULL, [1, 2], {'a': [1]}, MAP {'k': 1}, DATE '2026-01-02', "
        "TIMESTAMP '2026-01-02 03:04:05', INTERVAL 1 DAY, 'nan'::DOUBLE, uuid() IS NOT NULL, '\\x00'::BLOB, true"
    )
    ((*values, undefined, has, blob, yes),) = sql.run(results, query)[1]
    assert values == [
        1, Decimal("1.50"), "a", None, [1, 2], {"a": [1]}, {"k": 1}, date(2026, 1, 2), datetime(2026, 1, 2, 3, 4, 5),
        timedelta(days=1),
    ]  # fmt: skip
    assert math.isnan(undefined)
    assert (has, blob, yes) == (True, b"\x00", True)


def test_queries_show_the_cards_that_are_installed(results: Path) -> None:
    assert sql.run(results, "SELECT count(*) > 10 FROM methods WHERE installed")[1] == [(True,)]
    assert sql.run(results, "SELECT count(*) FROM pairwise")[1] == [(0,)]


def test_a_damaged_snapshot_is_healed(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.5, 0.7]}))
    duck.sync(tmp_path)
    path = duck.published_path(tmp_path)
    state = path.stat()
    path.write_bytes(path.read_bytes()[:20_000])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert sql.run(tmp_path, "SELECT count(*) FROM jobs")[1] == [(2,)]
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


def test_a_query_of_a_process_without_a_guard(results: Path) -> None:
    """A script that asks at its top level is not run a second time."""
    program = (
        "from pathlib import Path; from kdbench.store import sql\n"
        f"print(sql.run(Path({str(results)!r}), 'SELECT 6 * 7')[1])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("[(42,)]\n", "")
