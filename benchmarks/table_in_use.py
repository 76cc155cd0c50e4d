"""Measure a table in use: many finished rows, many updates, large payloads."""

import asyncio
import base64
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import create_engine, event, make_url, text

from execution_core import (
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
    connect,
    connect_async,
    migrate,
)

from .contenders import PAYLOAD
from .databases import Databases
from .interleaving import Contender, ratio, run_alternating, running

FINISHED = """
INSERT INTO executions (id, type, status, payload, result, error, attempts, max_attempts,
                        created_at, updated_at, started_at, completed_at)
SELECT {id}, 'type-' || (n % 10), CASE WHEN n % 10 = 0 THEN 'failed' ELSE 'completed' END,
       '{{"order": 1234567, "customer": "ada@example.org", "currency": "EUR", "express": false}}',
       CASE WHEN n % 10 > 0 THEN {json} END,
       CASE WHEN n % 10 = 0 THEN '{{"message": "declined"}}'{cast} END,
       1, 3, {time}, {time}, {time}, {time}
  FROM {numbers}
"""
HISTORY = """
INSERT INTO execution_history (execution_id, seq, from_status, to_status, attempt, occurred_at)
SELECT e.id, m.seq, m.was, CASE m.seq WHEN 2 THEN 'running' ELSE e.status END, 1, e.created_at
  FROM executions AS e, (SELECT 2 AS seq, 'pending' AS was UNION ALL SELECT 3, 'running') AS m
"""


def fill(url: str, count: int) -> None:
    """Add finished executions, older than all others, with their history."""
    if url.startswith("postgresql"):
        dialect_sql = {
            "id": "(lpad(to_hex(1600000000000 + n), 12, '0') || '70008000'"
            " || lpad(to_hex(n), 12, '0'))::uuid",
            "json": "'{\"shipped\": true}'::jsonb",
            "cast": "::jsonb",
            "time": "timestamptz '2020-09-13' + n * interval '1 second'",
            "numbers": "generate_series(1, :count) AS n",
        }
    else:
        dialect_sql = {
            "id": "printf('%08x-%04x-7000-8000-%012x', (1600000000000 + n) >> 16,"
            " (1600000000000 + n) & 65535, n)",
            "json": "'{\"shipped\": true}'",
            "cast": "",
            "time": "strftime('%Y-%m-%d %H:%M:%f000', 1600000000 + n, 'unixepoch')",
            "numbers": "(WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL"
            " SELECT n + 1 FROM numbers WHERE n < :count) SELECT n FROM numbers)",
        }
    Databases.query(url, FINISHED.format(**dialect_sql), count=count)
    Databases.query(url, HISTORY)
    Databases.query(url, "VACUUM ANALYZE" if url.startswith("postgresql") else "ANALYZE")


def many_finished(
    databases: Databases, *, rows: int, count: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Compare the speed on a table with many finished rows with that on an empty table."""
    for kind in ("postgresql", "sqlite"):
        urls = [getattr(databases, kind)() for _ in range(3)]
        for url in urls:
            migrate.upgrade(url)
        fill(urls[2], rows)
        contender = Contender("execution-core", "library", {"own": kind == "postgresql"})
        with ExitStack() as stack:
            runners = [stack.enter_context(running(contender, url)) for url in urls]
            seconds_of = run_alternating(runners, count=count, rounds=rounds)
        yield {
            "database": kind,
            "rows": rows,
            "empty_per_second": round(3 * count / median(seconds_of[0]), 1),
            "control": round(ratio(seconds_of[0], seconds_of[1]), 3),
            "ratio": round(ratio(seconds_of[0], seconds_of[2]), 3),
            "calls_ms": {
                name: [round(1000 * seconds, 2) for seconds in medians]
                for name, medians in calls_of(urls[0], urls[2]).items()
            },
        }
        for url in urls:
            databases.drop(url)


HOUR = timedelta(hours=1)
CALLS: dict[str, Callable[[ExecutionManager], Any]] = {
    "a page of 100: the newest": lambda m: m.list(),
    "a page of 100: status running": lambda m: m.list(status="running"),
    "a page of 100: any live status": lambda m: m.list(status=["pending", "running", "retrying"]),
    "a page of 100: status failed": lambda m: m.list(status="failed"),
    "a page of 100: failed or timed out": lambda m: m.list(status=["failed", "timed_out"]),
    "a page of 100: one type": lambda m: m.list(type="type-3"),
    "a page of 100: failed, of a type that never fails": lambda m: m.list(
        status="failed", type="type-3"
    ),
    "a claim of 1": lambda m: m.claim(),
    "a claim of 10 of a type": lambda m: m.claim("type-3", limit=10),
    "a claim, nothing due": lambda m: m.claim("type-0"),
    "a sweep, nothing overdue": lambda m: m.sweep(),
    "a sweep of stalled executions, none": lambda m: m.sweep(stalled_after=HOUR),
}


def calls_of(*urls: str) -> dict[str, list[float]]:
    """Return the median seconds of each call in each of the databases.

    There are 1,000 executions due, 1,000 delayed, and those that the claims started.
    """
    medians: dict[str, list[float]] = {name: [] for name in CALLS}
    for url in urls:
        with connect(url) as manager:
            for n in range(1000):
                manager.create("type-3", PAYLOAD, start_after=HOUR if n % 2 else None)
                manager.create("type-4", PAYLOAD, start_after=None if n % 2 else HOUR)
            for name, call in CALLS.items():
                times = []
                for _ in range(20):
                    begun = time.perf_counter()
                    call(manager)
                    times.append(time.perf_counter() - begun)
                medians[name].append(median(times))
    return medians


def hot_updates(
    databases: Databases, *, fillfactors: tuple[int, ...], updates: int = 40
) -> Iterator[dict[str, Any]]:
    """Measure the share of HOT updates (no index is written) at each fillfactor."""
    for fillfactor in fillfactors:
        url = databases.postgresql()
        migrate.upgrade(url)
        databases.query(url, f"ALTER TABLE executions SET (fillfactor = {fillfactor})")
        begun = time.perf_counter()
        asyncio.run(progress_of_many(url, updates))
        elapsed = time.perf_counter() - begun
        total, hot = updates_of(databases, url, 8 * 64 * (updates + 1))
        yield {
            "fillfactor": fillfactor,
            "updates": total,
            # The update that starts an execution changes an index, so it is not counted.
            "hot_share": round(hot / (total - 8 * 64), 4),
            "per_second": round(total / elapsed),
            "megabytes": round(size(databases, url) / 2**20, 2),
        }
        databases.drop(url)


async def progress_of_many(url: str, updates: int) -> None:
    """Write progress and checkpoints of 64 executions in each of 8 tasks."""

    async def work() -> None:
        ids = [(await manager.create("import", PAYLOAD)).id for _ in range(64)]
        for id in ids:
            await manager.start(id)
        for n in range(updates):
            for id in ids:
                if n % 2:
                    await manager.checkpoint(id, "last_index", n)
                else:
                    await manager.update_progress(id, n, updates, message=f"item {n}")

    async with connect_async(url) as manager, asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(work())


def updates_of(databases: Databases, url: str, expected: int) -> tuple[int, int]:
    """Return the numbers of all updates and of HOT updates, once the server has counted them."""
    limit = time.monotonic() + 30
    while True:
        found = databases.query(
            url,
            "SELECT n_tup_upd || ' ' || n_tup_hot_upd FROM pg_stat_user_tables"
            " WHERE relname = 'executions'",
        )
        total, hot = map(int, found.split())
        if total >= expected:
            return total, hot
        if time.monotonic() > limit:
            raise RuntimeError(f"the server has counted {total} of {expected} updates")
        time.sleep(0.2)


def size(databases: Databases, url: str) -> int:
    """Return the bytes of the table and its indexes."""
    return int(databases.query(url, "SELECT pg_total_relation_size('executions')"))


def vacuum(databases: Databases, *, updates: int = 20_000) -> dict[str, Any]:
    """Measure how the table grows while a transaction stays open, and what VACUUM frees."""
    url = databases.postgresql()
    migrate.upgrade(url)
    databases.query(url, "ALTER TABLE executions SET (autovacuum_enabled = off)")
    with connect(url) as manager:
        ids = [manager.create("import", PAYLOAD).id for _ in range(100)]

        def write() -> dict[str, float]:
            begun = time.perf_counter()
            for n in range(updates):
                manager.update_progress(ids[n % len(ids)], n, updates)
            return {
                "per_second": round(updates / (time.perf_counter() - begun)),
                "megabytes": round(size(databases, url) / 2**20, 2),
            }

        figures: dict[str, Any] = {"updates": updates, "alone": write()}
        engine = create_engine(url)
        with engine.connect() as reader:
            reader.execution_options(isolation_level="REPEATABLE READ")
            reader.execute(text("SELECT count(*) FROM executions"))
            figures["beside an open transaction"] = write()
        engine.dispose()
        databases.query(url, "VACUUM executions")
        figures["after VACUUM"] = write()
    databases.drop(url)
    return figures


def payloads(databases: Databases, *, sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Measure the bytes logged per write of an execution, by the size of its payload."""
    for kind, count in (("postgresql", 200), ("sqlite", 100)):
        for payload_size in sizes:
            url = getattr(databases, kind)()
            migrate.upgrade(url)
            with measured_manager(url) as (manager, log_size):
                # Base64 of random bytes, which compresses little.
                ids = [
                    manager.create(
                        "import", base64.b64encode(os.urandom(payload_size * 3 // 4)).decode()
                    ).id
                    for _ in range(count)
                ]
                before, begun = log_size(), time.perf_counter()
                for id in ids:
                    manager.start(id, worker="host-1")
                    manager.update_progress(id, 1, 2)
                    manager.checkpoint(id, "last_index", 1)
                    manager.complete(id, {"done": True})
                elapsed = time.perf_counter() - begun
                logged = log_size() - before
            yield {
                "database": kind,
                "payload_bytes": payload_size,
                "log_bytes_per_move": round(logged / count / 4),
                "microseconds_per_move": round(1e6 * elapsed / count / 4),
            }
            databases.drop(url)


@contextmanager
def measured_manager(url: str) -> Iterator[tuple[ExecutionManager, Callable[[], int]]]:
    """Yield a manager and a function that returns the bytes its database has logged."""
    if url.startswith("postgresql"):
        with connect(url) as manager:
            yield (
                manager,
                lambda: int(Databases.query(url, "SELECT pg_current_wal_insert_lsn() - '0/0'")),
            )
        return
    engine = configure_sqlite(create_engine(url))

    @event.listens_for(engine, "connect")
    def keep_log(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # so the log keeps all that was written

    log = Path(f"{make_url(url).database}-wal")
    yield ExecutionManager(SqlExecutionStore(engine)), lambda: log.stat().st_size
    engine.dispose()
