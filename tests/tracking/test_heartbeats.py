"""Heartbeats: which writes set one, and the thread or task that sends them."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import StaticPool, create_engine

from execution_core import (
    AttemptLost,
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
    configure_sqlite,
    connect,
    connect_async,
    migrate,
)

from ..conftest import Database
from ..support.attempts import Outage, UnreachableStore
from ..support.waiting import wait_until


def test_heartbeat_is_set_by_every_attempt_write(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a", max_attempts=2)
    assert job.heartbeat_at is None
    m = any_manager
    writes: list[Callable[[], Any]] = [
        lambda: m.start(job.id),
        lambda: m.heartbeat(job.id, attempt=1),
        lambda: m.update_progress(job.id, 1, 2),
        lambda: m.checkpoint(job.id, "k", 1),
        lambda: m.advance(job.id, 1, 2, key="k", value=1),
    ]
    for write in writes:
        time.sleep(0.003)
        before = m.get(job.id)
        after = write()
        assert after.heartbeat_at is not None
        assert after.heartbeat_at == after.updated_at
        assert after.heartbeat_at > (before.heartbeat_at or before.updated_at)
    time.sleep(0.003)
    assert m.fail(job.id, "no", retryable=True).heartbeat_at == after.heartbeat_at


def test_heartbeat_thread_writes_and_stops(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(database.url) as manager:
        job = manager.create("a", max_attempts=9)
        every = timedelta(milliseconds=5)
        for error in (Outage(), None):
            with (
                pytest.raises(Outage) if error else nullcontext(),
                manager.attempt(job.id, heartbeat=every, retry_on=Outage) as attempt,
            ):
                first = attempt.execution.heartbeat_at
                second = wait_until(lambda: (b := manager.get(job.id).heartbeat_at) != first and b)  # noqa: B023
                wait_until(lambda: manager.get(job.id).heartbeat_at not in (first, second))  # noqa: B023
                if error:
                    raise error
            assert not [t for t in threading.enumerate() if t.name.startswith("heartbeat-")]
        assert manager.get(job.id).status == "completed"
    assert caplog.text == ""


@pytest.mark.parametrize("error", [None, Outage()])
def test_heartbeat_long_interval_does_not_delay_exit(
    manager: ExecutionManager, error: Outage | None
) -> None:
    begun = time.monotonic()
    with (
        pytest.raises(Outage) if error else nullcontext(),
        manager.attempt(manager.create("a").id, heartbeat=timedelta(seconds=60)),
    ):
        if error:
            raise error
    assert time.monotonic() < begun + 30


def test_heartbeat_thread_stops_when_attempt_is_lost(database: Database) -> None:
    with connect(database.url) as manager:
        job = manager.create("a", max_attempts=9)
        every = timedelta(milliseconds=5)
        with pytest.raises(AttemptLost), manager.attempt(job.id, heartbeat=every):
            names = [t for t in threading.enumerate() if t.name == f"heartbeat-{job.id}"]
            assert len(names) == 1
            cancelled = manager.cancel(job.id)
            wait_until(lambda: not names[0].is_alive())
            assert manager.get(job.id) == cancelled


def test_heartbeat_continues_after_outage(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(database.url) as manager:
        manager._store = unreachable = UnreachableStore(manager._store)
        job = manager.create("a")
        with manager.attempt(job.id, heartbeat=timedelta(milliseconds=5)):
            unreachable.down = True
            wait_until(lambda: "A heartbeat of attempt 1" in caplog.text)
            unreachable.down = False
            before = manager.get(job.id)
            wait_until(lambda: manager.get(job.id) != before)


def heartbeat_tasks() -> list[Any]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("heartbeat-")]


def test_heartbeat_task_writes_and_stops(database: Database) -> None:
    async def run() -> None:
        async with connect_async(database.url) as manager:
            job = await manager.create("a", max_attempts=9)
            every = timedelta(milliseconds=5)
            with pytest.raises(Outage):
                async with manager.attempt(job.id, heartbeat=every, retry_on=Outage) as attempt:
                    first = attempt.execution.heartbeat_at
                    while (await manager.get(job.id)).heartbeat_at == first:
                        await asyncio.sleep(0.01)
                    raise Outage
            assert not heartbeat_tasks()
            with pytest.raises(AttemptLost):
                async with manager.attempt(job.id, heartbeat=every):
                    cancelled = await manager.cancel(job.id)
                    while heartbeat_tasks():
                        await asyncio.sleep(0.01)
            assert await manager.get(job.id) == cancelled

    asyncio.run(asyncio.wait_for(run(), 30))


def test_heartbeat_on_shared_connection_is_refused() -> None:
    """In-memory SQLite has one database per thread, or one connection for all threads."""
    for options in ({}, {"poolclass": StaticPool}):
        engine = configure_sqlite(create_engine("sqlite://", **options))
        migrate.upgrade(engine)
        manager = ExecutionManager(SqlExecutionStore(engine))
        job = manager.create("a")
        with pytest.raises(InvalidValue, match="heartbeat needs a connection of its own"):
            manager.attempt(job.id, heartbeat=timedelta(seconds=1))
        with pytest.raises(InvalidValue, match="heartbeat needs a connection of its own"):
            manager.tracked("a", heartbeat=timedelta(seconds=1))
        with manager.attempt(job.id) as attempt:
            attempt.heartbeat()
        engine.dispose()
