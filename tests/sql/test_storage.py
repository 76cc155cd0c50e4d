"""How rows are read and written: pages, JSON values, indexes, HOT updates and WAL."""

import json
import random
import sqlite3
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from execution_core import (
    ExecutionStatus,
    connect,
    migrate,
)
from execution_core.core import json_values, transitions, validation
from execution_core.sql.driver import engine
from execution_core.sql.schema.column_types import JsonText
from execution_core.sql.statements import queries
from execution_core.testing.pages import build_page

from ..conftest import Database, open_manager
from ..support.postgres import server
from ..support.sampling import in_whole


@pytest.mark.slow
def test_list_random_filters_returns_the_filtered_rows(
    database: Database, mode: str, runner: Any
) -> None:
    with open_manager(database.url, mode, runner) as manager:
        parents = [manager.create("parent").id for _ in range(2)]
        for n in range(60):
            id = manager.create("ab"[n % 2], max_attempts=2, parent_id=parents[n % 3 - 1]).id
            if n % 7 < 5:
                manager.start(id)
            if n % 7 < 3:
                manager.fail(id, "no", retryable=n % 7 == 1)
            if n % 7 == 3:
                manager.complete(id)
        everything = manager.list(limit=1000)
        random_ = random.Random(7)
        for _ in range(in_whole(300, 100)):
            statuses = random_.sample(list(ExecutionStatus), random_.randrange(1, 5))
            options: dict[str, Any] = {
                "status": random_.choice([None, statuses, statuses[0], []]),
                "type": random_.choice([None, "a", "b", ["a", "c"]]),
                "parent_id": random_.choice([None, *parents]),
                "limit": random_.choice([1, 3, 10, 100]),
                "before": random_.choice([None, everything[20].id, everything[-3].id]),
                "oldest_first": random_.choice([False, True]),
            }
            wanted = build_page(**options)
            expected = [each for each in everything if wanted.includes(each)]
            ordered = expected[::-1] if wanted.oldest_first else expected
            assert manager.list(**options) == ordered[: wanted.limit]


def every_filter() -> list[dict[str, Any]]:
    id = "0198a000-0000-7000-8000-000000000001"
    statuses: list[Any] = [None, "failed", ["pending", "running"], []]
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    return [
        {"status": status, "type": type, "parent_id": parent, "limit": 5, "before": before}
        for status in statuses
        for type in (None, "a", ["a", "b"])
        for parent in (None, id)
        for before in (None, id)
    ] + [
        {**window, "status": status, "oldest_first": True, "limit": 5}
        for status in statuses
        for window in (
            {"replay_of": id},
            {"created_since": moment, "created_until": moment},
            {"finished_since": moment, "type": "a"},
        )
    ]


@pytest.mark.parametrize("wanted", every_filter(), ids=str)
def test_list_every_filter_uses_an_index(database: Database, wanted: dict[str, Any]) -> None:
    """A page reads and sorts only its own rows, however many executions have finished."""
    query = queries.page(build_page(**wanted))
    compiled = query.statement.compile(dialect=database.engine.dialect)
    given = {**compiled.params, **query.parameters}
    with database.engine.connect() as connection:
        explain = "EXPLAIN QUERY PLAN " if database.name == "sqlite" else "EXPLAIN "
        if database.name == "postgresql":  # otherwise it reads so small a table whole
            connection.exec_driver_sql("SET enable_seqscan = off")
            connection.exec_driver_sql("SET enable_bitmapscan = off")
            parameters: Any = {name: given[name] for name in compiled.params}
        else:
            parameters = tuple(given[name] for name in compiled.positiontup or ())
        plan = [
            str(row[-1]) for row in connection.exec_driver_sql(explain + str(compiled), parameters)
        ]
    for step in plan:
        assert "Seq Scan on executions" not in step, plan
        assert not step.startswith("SCAN executions") or "USING INDEX" in step, plan
    if "replay_of" in wanted or "finished_since" in wanted:
        if database.name == "sqlite" and wanted["status"] != []:  # PostgreSQL has statistics
            column = "replay_of" if "replay_of" in wanted else "completed_at"
            assert f"ix_executions_{column}" in str(plan), plan
    elif "TEMP B-TREE" in str(plan):
        assert "COMPOUND" in str(plan), plan


def test_execution_fields_set_is_not_shared(database: Database) -> None:
    with connect(database.url) as manager:
        one, other = manager.create("a"), manager.create("b")
        one.model_fields_set.discard("type")
        assert other.model_dump(exclude_unset=True)["type"] == "b"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=in_whole(500, 100), suppress_health_check=[HealthCheck.too_slow])
@given(PLAIN)
def test_json_random_values_read_like_json_loads(value: Any) -> None:
    for written in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        expected = json.loads(written)
        found = read_json(written)
        assert found == expected
        assert repr(found) == repr(expected)


@pytest.mark.parametrize(
    "written",
    ['"\\ud800"', "[" * 250 + "]" * 250, " { } ", "1e400", "-0", "-0.0", "1E5", '{"a":1,"a":2}',
     "123456789012345678901234567890", "0.1", "1e23", "NaN", '"\\u0000"', "5e-324"],
)  # fmt: skip
def test_json_unusual_text_read_like_json_loads(written: str) -> None:
    assert repr(read_json(written)) == repr(json.loads(written))


def read_json(written: str) -> Any:
    from sqlalchemy.dialects import sqlite

    read = JsonText().result_processor(sqlite.dialect(), None)
    return read(written)


@pytest.mark.parametrize("depth", [json_values.MAX_DEPTH, json_values.MAX_DEPTH - 1])
def test_payload_of_maximum_depth_round_trips(database: Database, depth: int) -> None:
    payload: Any = "leaf"
    for n in range(depth):
        payload = {"in": payload} if n % 2 else [payload]
    with connect(database.url) as manager:
        assert manager.get(manager.create("a", payload).id).payload == payload


ROUNDS = in_whole(30, 20)


@pytest.mark.exhaustive
def test_progress_updates_are_hot() -> None:
    """On its own server: snapshots of other tests would keep old row versions on the page.

    PostgreSQL only: SQLite keeps no row versions.
    """
    with server(own=True) as own:
        total, hot = count_updates(own.url)
    assert total == 40 * (1 + 4 * ROUNDS)
    assert hot >= 0.98 * total


def count_updates(url: str) -> tuple[int, int]:
    """Write progress; return the number of updates and of HOT updates, which write no index."""
    migrate.upgrade(url)
    engine = create_engine(url)
    with engine.begin() as connection:  # an ANALYZE would hold a snapshot
        connection.execute(text("ALTER TABLE executions SET (autovacuum_enabled = off)"))
    with connect(url) as manager:
        ids = [manager.create("a", "x" * 1500).id for _ in range(40)]
        for id in ids:
            manager.start(id)  # the only update that writes an index
        for n in range(ROUNDS):
            for id in ids:
                manager.update_progress(id, n, ROUNDS, message="m" * n)
                manager.checkpoint(id, "last", n)
                manager.advance(id, n, ROUNDS, key="last", value=n)
                manager.heartbeat(id)
    counted = (
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'executions'"
    )
    total = hot = 0
    limit = time.monotonic() + 60
    while (
        total < 40 * (1 + 4 * ROUNDS) and time.monotonic() < limit
    ):  # counted when the connection has closed
        with engine.connect() as connection:
            total, hot = connection.execute(text(counted)).one()
    engine.dispose()
    return total, hot


def test_update_with_large_payload_does_not_log_it_again(postgres_database: Database) -> None:
    """PostgreSQL only: SQLite writes the whole row, as docs/performance.md says."""
    steps = [
        transitions.start("w"),
        transitions.update_progress(1, 2, None, None, None),
        transitions.checkpoint("k", 1, None),
        transitions.complete({"r": 1}, None),
    ]

    def wal_bytes(payload: str) -> int:
        engine = postgres_database.engine
        with connect(postgres_database.url) as manager, engine.begin() as connection:
            id = manager.create("a", payload).id
            total = 0
            for step in steps:
                statement, parameters, *_ = queries.update(id, step, validation.new_id(), None)
                compiled: Any = statement.compile(dialect=engine.dialect)
                given = {
                    name: bind.type.dialect_impl(engine.dialect).bind_processor(engine.dialect)
                    for name, bind in compiled.binds.items()
                }
                explained = connection.exec_driver_sql(
                    f"EXPLAIN (ANALYZE, WAL, FORMAT JSON) {compiled}",
                    {
                        name: convert(parameters[name]) if convert else parameters[name]
                        for name, convert in given.items()
                    },
                ).scalar_one()
                assert explained[0]["Plan"]["Plans"][0]["Actual Rows"] == 1
                total += explained[0]["Plan"]["WAL Bytes"]
        return total

    noise = "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=100_000))
    assert 0 < wal_bytes(noise) <= 1.2 * wal_bytes("x" * 100)


def test_sqlite_wal_shrinks_after_a_long_reader(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader lets the WAL grow; without a limit it would keep its size for ever."""
    monkeypatch.setattr(engine, "WAL_SIZE_LIMIT", 2**20)
    url = f"sqlite:///{tmp_path}/wal.db"
    wal = tmp_path / "wal.db-wal"
    migrate.upgrade(url)
    with connect(url) as manager:
        manager.create("first")
        with sqlite3.connect(tmp_path / "wal.db") as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM executions").fetchone()
            for _ in range(40):
                manager.create("work", "x" * 100_000)
            assert wal.stat().st_size > 3 * 2**20
            reader.rollback()
        reader.close()
        for _ in range(20):
            manager.create("work", "x" * 100_000)
        assert wal.stat().st_size < 3 * 2**20
