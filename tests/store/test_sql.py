"""``kdbench sql`` reads the results and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kdbench.errors import UsageError
from kdbench.store import duck, sql
from tests.helpers.outcomes import grid, put


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    put(folder, grid({"kd": [0.5, 0.7]}))
    return folder


def test_a_query(results: Path) -> None:
    columns, rows = sql.run(results, "SELECT label, avg(score) AS score FROM jobs GROUP BY label")
    assert (columns, rows) == (["label", "score"], [("kd", pytest.approx(0.6))])


@pytest.mark.parametrize(
    "query", ["DESCRIBE jobs", "SHOW TABLES", "SUMMARIZE metrics", "EXPLAIN FROM jobs", "VALUES (1)"]
)
def test_other_ways_to_ask(results: Path, query: str) -> None:
    assert sql.run(results, query)[1]


@pytest.mark.parametrize(
    "query",
    [
        "COPY jobs TO '{outside}'",
        "COPY (SELECT 1) TO '{outside}' (FORMAT parquet)",
        "EXPORT DATABASE '{outside}'",
        "ATTACH '{outside}' AS other",
        "ATTACH ':memory:' AS other",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM sniff_csv('{secret}')",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET enable_external_access",
        "SET lock_configuration = false",
        "PRAGMA enable_external_access = true",
        "PRAGMA database_list",
        "INSERT INTO store.jobs SELECT * FROM store.jobs",
        "UPDATE store.jobs SET score = 1",
        "DELETE FROM store.jobs",
        "DROP VIEW jobs",
        "DROP TABLE store.jobs",
        "CREATE TABLE mine (a INTEGER)",
        "CREATE TEMP TABLE mine AS SELECT 1",
        "CREATE MACRO f(x) AS x",
        "CREATE SECRET (TYPE s3)",
        "CALL pragma_version()",
        "BEGIN",
        "VACUUM",
        "PREPARE p AS SELECT 1",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW jobs",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{outside}'",
        "EXPLAIN ANALYZE DELETE FROM store.jobs",
        "SELECT getenv('HOME')",
        "SELECT * FROM secret",
        "",
        "   -- nothing",
        "SELEKT 1",
        "SELECT nothing FROM jobs",
        "\x00",
    ],
)
def test_hostile_and_broken_queries(results: Path, tmp_path: Path, query: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    outside = tmp_path / "outside"
    before = duck.published_path(results).read_bytes() if duck.published_path(results).exists() else None
    with pytest.raises(UsageError) as caught:
        sql.run(results, query.format(outside=outside, secret=secret))
    assert len(str(caught.value).splitlines()) == 1
    assert not outside.exists()
    assert sql.run(results, "SELECT count(*) FROM jobs")[1] == [(2,)]
    if before is not None:
        assert duck.published_path(results).read_bytes() == before


@pytest.mark.parametrize(
    "query",
    [
        "SELECT sum(a.i * b.i) FROM range(1000000) a(i), range(1000000) b(i)",
        "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r",
        "SELECT * FROM range(1000000000000)",
    ],
)
def test_time_limit(results: Path, query: str) -> None:
    sql.run(results, "SELECT 1")
    started = time.monotonic()
    with pytest.raises(UsageError, match="took longer than"):
        sql.run(results, query, seconds=0.3)
    assert time.monotonic() - started < 5


def test_memory_limit(results: Path) -> None:
    with pytest.raises(UsageError, match="Out of Memory"):
        sql.run(results, "SELECT list(i)[7] FROM range(1000000000) t(i)", seconds=60)


def test_row_limit(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MOST_ROWS", 20_000)
    with pytest.raises(UsageError, match="more than 20,000 rows"):
        sql.run(results, "SELECT * FROM range(30000)")
