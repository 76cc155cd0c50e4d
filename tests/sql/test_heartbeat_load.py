"""Heartbeats of many attempts of one manager, while many of its callers wait for locks."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    contextmanager,
    nullcontext,
)
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from execution_core import connect, connect_async
from execution_core.sql.driver.engine import OWN_POOL

from ..conftest import Database
from ..support.query_plans import insert_rows
from ..support.waiting import wait_until
from .lost_connections import blocked_pids, row_lock

CALLERS = 50
AGES = {
    "postgresql": "extract(epoch FROM clock_timestamp() - min(heartbeat_at))",
    "sqlite": "(julianday('now') - julianday(min(heartbeat_at))) * 86400",
}
"""How old the oldest heartbeat is, in seconds."""


@contextmanager
def locks(database: Database, locked: str) -> Iterator[None]:
    """Hold a lock on a row and one on an idempotency key."""
    with row_lock(database, locked) as connection:
        insert = "INSERT INTO executions (id, type, idempotency_key, fingerprint)"
        connection.execute(text(f"{insert} VALUES (gen_random_uuid(), 'b', 'open', 'f')"))
        yield


class Load:
    """Attempts of one manager, of which one is locked, and callers that wait for locks.

    On SQLite, where a lock is on the whole database, the callers write as fast as they can.
    """

    def __init__(self, database: Database, attempts: int, interval: timedelta) -> None:
        self.database, self.attempts, self.interval = database, attempts, interval
        self.has_row_locks = database.name == "postgresql"
        self.is_done = False
        self.oldest = 0.0
        """The greatest age of a heartbeat, in seconds."""
        database.empty()
        insert_rows(database, "pending", attempts)
        database.run("UPDATE executions SET type = 'a', due_at = created_at")

    def call(self, manager: Any, locked: str, number: int) -> Any:
        """Wait for the lock on a row, or for the key of a row that is not committed."""
        if self.has_row_locks and number % 2:
            return manager.heartbeat(locked)
        return manager.create("other", idempotency_key="open" if self.has_row_locks else None)

    def locks(self, locked: str) -> AbstractContextManager[None]:
        return locks(self.database, locked) if self.has_row_locks else nullcontext()

    def watch(self, locked: str, seconds: float) -> None:
        """Sweep as another process does, after five intervals of silence."""
        if self.has_row_locks:
            wait_until(lambda: len(blocked_pids(self.database)) >= OWN_POOL)
        age = f"SELECT {AGES[self.database.name]} AS age FROM executions WHERE type = 'a'"
        end = time.monotonic() + seconds
        with connect(self.database.url) as other:
            while time.monotonic() < end:
                assert other.sweep(type="a", stalled_after=5 * self.interval, limit=10_000) == []
                (row,) = self.database.rows(f"{age} AND id <> :locked", locked=locked)
                self.oldest = max(self.oldest, float(row["age"]))
                time.sleep(0.05)
        if self.has_row_locks:
            assert len(blocked_pids(self.database)) >= OWN_POOL
        self.is_done = True

    def run_threads(self, seconds: float) -> None:
        def repeat(number: int) -> None:
            self.call(manager, locked, number)
            while not (self.is_done or self.has_row_locks):
                self.call(manager, locked, number)

        with (
            connect(self.database.url) as manager,
            ThreadPoolExecutor(CALLERS) as pool,
            ExitStack() as blocks,
        ):
            claimed = manager.claim("a", limit=self.attempts)
            for each in claimed:
                blocks.enter_context(manager.attempt(each, heartbeat=self.interval))
            locked = claimed[0].id
            with self.locks(locked):
                calls = [pool.submit(repeat, number) for number in range(CALLERS)]
                self.watch(locked, seconds)
            for call in calls:
                call.result(30)

    async def run_tasks(self, seconds: float) -> None:
        async def repeat(number: int) -> None:
            await self.call(manager, locked, number)
            while not (self.is_done or self.has_row_locks):
                await self.call(manager, locked, number)

        async with connect_async(self.database.url) as manager, AsyncExitStack() as blocks:
            claimed = await manager.claim("a", limit=self.attempts)
            for each in claimed:
                await blocks.enter_async_context(manager.attempt(each, heartbeat=self.interval))
            locked = claimed[0].id
            with self.locks(locked):
                calls = [asyncio.create_task(repeat(number)) for number in range(CALLERS)]
                await asyncio.to_thread(self.watch, locked, seconds)
            await asyncio.gather(*calls)

    def run(self, mode: str, seconds: float) -> None:
        if mode == "sync":
            self.run_threads(seconds)
        else:
            asyncio.run(self.run_tasks(seconds))
        found = "SELECT status, count(*) AS n FROM executions WHERE type = 'a' GROUP BY status"
        assert self.database.rows(found) == [{"status": "completed", "n": self.attempts}]


@pytest.mark.slow
def test_heartbeats_continue_while_all_connections_wait_for_locks(
    postgres_database: Database, mode: str
) -> None:
    """Nor does the lock on the row of one attempt stop the heartbeats of the others."""
    Load(postgres_database, 20, timedelta(milliseconds=200)).run(mode, 1.5)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("mode", "attempts"), [("sync", 200), ("async", 1_000)])
def test_heartbeats_of_many_attempts_beside_blocked_callers_are_in_time(
    database: Database, mode: str, attempts: int, tell: Callable[[str], None]
) -> None:
    load = Load(database, attempts, timedelta(seconds=1))
    load.run(mode, 8)
    tell(
        f"{database.name}, {mode}: the heartbeats of {attempts} attempts, each second, beside"
        f" {CALLERS} blocked callers: the oldest one was {load.oldest:.2f} s old"
    )
