"""Helpers for tests of lost connections and conflicts."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ExecutionManager,
    SqlExecutionStore,
    connect,
    connect_async,
)

from ..conftest import Blocking, Database

DAY = timedelta(days=1)


@contextmanager
def open_bound_manager(
    url: str, mode: str, binding: str, runner: asyncio.Runner, **options: Any
) -> Iterator[Any]:
    """Yield a manager on its own engine, or on that of a host, which may listen or translate."""
    if binding == "own":
        manager: Any = (
            connect(url, **options)
            if mode == "sync"
            else Blocking(connect_async(url, **options), runner)
        )
        yield manager
        manager.close()
        return
    mapped = {"schema_translate_map": {"other": "public"}} if binding == "translated" else {}
    if mode == "sync":
        engine: Engine = create_engine(url, execution_options=mapped)
        manager = ExecutionManager(SqlExecutionStore(engine, **options))
        dispose: Callable[[], Any] = engine.dispose
    else:
        asynchronous = create_async_engine(url, execution_options=mapped)
        engine = asynchronous.sync_engine
        store = AsyncSqlExecutionStore(asynchronous, **options)
        manager = Blocking(AsyncExecutionManager(store), runner)
        dispose = lambda: runner.run(asynchronous.dispose())  # noqa: E731
    if binding == "listening":
        event.listen(engine, "before_cursor_execute", lambda *_: None)
    yield manager
    dispose()


def age_by_a_minute(database: Database) -> None:
    """Move all times back by a minute.

    Then a sweep finds the execution stalled, and a write of a call is newer than all others.
    """
    times = ("created", "updated", "started", "completed", "deadline", "heartbeat")
    earlier = (f"{time}_at = {time}_at - interval '1 minute'" for time in times)
    database.run(f"UPDATE executions SET {', '.join(earlier)}")


def blocked_pids(database: Database) -> list[int]:
    """Return the pids of the backends that wait for a lock of another backend."""
    rows = database.rows(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
    )
    return [row["pid"] for row in rows]


def wait_for(condition: Callable[[], Any]) -> Any:
    limit = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < limit, "the condition did not become true"
        time.sleep(0.01)
    return found


@contextmanager
def row_lock(database: Database, id: str) -> Iterator[Connection]:
    """Lock the row of an execution in a transaction that stays open."""
    with database.engine.connect() as connection:
        query = text("SELECT 1 FROM executions WHERE id = :id FOR UPDATE")
        connection.execute(query, {"id": id})
        yield connection
