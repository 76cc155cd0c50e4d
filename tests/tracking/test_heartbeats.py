"""Heartbeats: which writes set one, and what sends them in the background."""

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
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
from ..support.heartbeats import EVERY, heartbeat_threads, record_calls
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
        for error in (Outage(), None):  # the second attempt starts a thread again
            with (
                pytest.raises(Outage) if error else nullcontext(),
                manager.attempt(job.id, heartbeat=EVERY, retry_on=Outage) as attempt,
            ):
                assert len(heartbeat_threads()) == 1
                first = attempt.execution.heartbeat_at
                second = wait_until(lambda: (b := manager.get(job.id).heartbeat_at) != first and b)  # noqa: B023
                wait_until(lambda: manager.get(job.id).heartbeat_at not in (first, second))  # noqa: B023
                if error:
                    raise error
            wait_until(lambda: not heartbeat_threads())
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


def test_heartbeat_continues_after_outage(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(database.url) as manager:
        manager._store = unreachable = UnreachableStore(manager._store)
        jobs = [manager.create("a") for _ in range(3)]
        with ExitStack() as blocks:
            for job in jobs:
                blocks.enter_context(manager.attempt(job.id, heartbeat=EVERY))
            unreachable.down = True
            wait_until(lambda: "A heartbeat of attempt 1" in caplog.text)
            unreachable.down = False
            for before in [manager.get(job.id) for job in jobs]:
                wait_until(lambda: manager.get(before.id) != before)  # noqa: B023


def heartbeat_calls() -> list[Any]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "heartbeats"]


def test_heartbeat_task_writes_and_stops(database: Database) -> None:
    async def run() -> None:
        async with connect_async(database.url) as manager:
            calls = record_calls(manager)
            job = await manager.create("a", max_attempts=9)
            with pytest.raises(Outage):
                async with manager.attempt(job.id, heartbeat=EVERY, retry_on=Outage) as attempt:
                    first = attempt.execution.heartbeat_at
                    while (await manager.get(job.id)).heartbeat_at == first:
                        await asyncio.sleep(0.01)
                    raise Outage
            assert not heartbeat_calls()
            with pytest.raises(AttemptLost):
                async with manager.attempt(job.id, heartbeat=EVERY):
                    cancelled = await manager.cancel(job.id)
                    begun = -1
                    while begun < len(calls):
                        begun = len(calls)
                        await asyncio.sleep(0.1)
            assert await manager.get(job.id) == cancelled

    asyncio.run(asyncio.wait_for(run(), 30))


def test_heartbeat_task_cancelled_by_host_is_repeated(database: Database) -> None:
    async def run() -> None:
        async with connect_async(database.url) as manager:
            calls, job = record_calls(manager), await manager.create("a")
            async with manager.attempt(job.id, heartbeat=EVERY):
                while not (tasks := heartbeat_calls()):
                    await asyncio.sleep(0)
                tasks[0].cancel()
                begun = len(calls)
                while len(calls) < begun + 3:
                    await asyncio.sleep(0.005)
            assert (await manager.get(job.id)).status == "completed"

    asyncio.run(asyncio.wait_for(run(), 30))


def test_heartbeats_in_one_event_loop_after_another_are_sent(database: Database) -> None:
    """Although the first one has ended inside a block."""
    manager = connect_async(database.url)
    calls, attempts = record_calls(manager), []

    async def enter(interval: timedelta, wanted: int) -> None:
        job = await manager.create("a")
        attempts.append(manager.attempt(job.id, heartbeat=interval))
        await attempts[-1].__aenter__()
        while len(calls) < wanted:
            await asyncio.sleep(0.005)
        if wanted:
            await attempts[-1].__aexit__(None, None, None)
        await manager.close()

    asyncio.run(enter(timedelta(hours=1), 0))
    asyncio.run(asyncio.wait_for(enter(EVERY, 3), 30))
    assert calls[-1] == {(attempts[-1].execution.id, 1)}


def test_heartbeats_when_event_loop_ends_leave_nothing_pending(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(id: str) -> None:
        async with manager.attempt(id, heartbeat=EVERY):
            await asyncio.sleep(60)

    async def run() -> None:
        jobs = [await manager.create("a", max_attempts=2) for _ in range(5)]
        tasks.extend(asyncio.create_task(work(job.id)) for job in jobs)
        while not calls or len(calls[-1]) < 5:
            await asyncio.sleep(0)

    manager, tasks = connect_async(database.url), list[Any]()
    calls = record_calls(manager)
    with asyncio.Runner() as runner:
        runner.run(run())
        asyncio.runners._cancel_all_tasks(runner.get_loop())  # type: ignore[attr-defined]
        runner.run(manager.close())
    gc.collect()
    assert caplog.text == ""
    with connect(database.url) as other:
        assert {each.status for each in other.list()} == {"retrying"}


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
