"""Attempts interrupted by Ctrl-C, by cancellation, or by the end of the event loop."""

import asyncio
import signal
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    configure_sqlite,
    connect,
    connect_async,
    migrate,
)
from execution_core.sql.driver.engine import create_async_engine

from ..conftest import Database
from ..support.attempts import Outage
from ..support.sampling import in_whole, sampled


@pytest.mark.parametrize("error", [None, Outage()])
def test_attempt_interrupted_while_recording_is_retrying(
    database: Database, error: Outage | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the main thread records the outcome."""
    with connect(database.url) as manager:
        job, update, first_call = (
            manager.create("a", max_attempts=2),
            manager._store.update,
            iter([True]),
        )

        def interrupted(*arguments: Any, **options: Any) -> Any:
            if next(first_call, False):
                raise KeyboardInterrupt
            return update(*arguments, **options)

        with pytest.raises(KeyboardInterrupt), manager.attempt(job.id):
            monkeypatch.setattr(manager._store, "update", interrupted)
            if error:
                raise error
        left = manager.get(job.id)
        assert left.status == "retrying"
        assert left.error is not None
        assert left.error.code == "interrupted"


INTERRUPTED = """
import os, signal, sys, threading, time
from datetime import timedelta
from execution_core import connect
signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup may have it ignored
manager = connect(sys.argv[1])
id = sys.argv[2]
with manager.attempt(id, heartbeat=timedelta(seconds=0.001)) as attempt:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    time.sleep(60)
"""


@pytest.mark.slow
def test_attempt_ctrl_c_is_recorded(database: Database) -> None:
    with connect(database.url) as manager:
        job = manager.create("a", max_attempts=2)
        ran = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, database.url, job.id],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert ran.returncode == -signal.SIGINT
        assert "KeyboardInterrupt" in ran.stderr
        left = manager.get(job.id)
        assert left.status == "retrying"
        assert left.error is not None
        assert left.error.code == "interrupted"


def test_attempt_cancelled_is_retrying(database: Database) -> None:
    async def work(manager: Any, id: str, entered: asyncio.Event) -> None:
        async with manager.attempt(id, heartbeat=timedelta(milliseconds=5)):
            entered.set()
            await asyncio.sleep(60)

    async def run() -> None:
        async with connect_async(database.url) as manager:
            for _ in range(in_whole(20, 5)):
                job = await manager.create("a", max_attempts=2)
                entered = asyncio.Event()
                task = asyncio.create_task(work(manager, job.id, entered))
                await entered.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                left = await manager.get(job.id)
                assert left.status == "retrying"
                assert left.error is not None
                assert left.error.code == "interrupted"

    asyncio.run(asyncio.wait_for(run(), 60))


def test_attempt_cancelled_at_any_step_is_not_left_running(database: Database) -> None:
    """At every step of the event loop: before, during and after each statement of the block."""

    async def work(manager: Any, id: str) -> None:
        async with manager.attempt(id) as attempt:
            await attempt.update_progress(1, 2)
            attempt.result = 7

    async def run() -> dict[str, int]:
        seen: dict[str, int] = {}
        async with connect_async(database.url) as manager:
            for steps in sampled(range(400), 4):
                job = await manager.create("a", max_attempts=2)
                task = asyncio.create_task(work(manager, job.id))
                for _ in range(steps):
                    await asyncio.sleep(0 if steps < 60 else 0.0001)
                    if task.done():
                        break
                cancelled = task.cancel()
                await asyncio.wait([task])
                left = await manager.get(job.id)
                seen[left.status] = seen.get(left.status, 0) + 1
                assert left.status in ("pending", "retrying", "completed"), left
                if not cancelled:
                    break
            assert (await manager.create("the pool still works")).status == "pending"
        return seen

    seen = asyncio.run(asyncio.wait_for(run(), 120))
    assert {"pending", "retrying", "completed"} <= seen.keys(), seen


def test_attempt_cancelled_repeatedly_still_records(database: Database) -> None:
    async def work(manager: Any, id: str, entered: asyncio.Event, error: Exception | None) -> None:
        async with manager.attempt(id):
            entered.set()
            if error:
                raise error
            await asyncio.sleep(60)

    async def run() -> None:
        async with connect_async(database.url) as manager:
            for error in (None, Outage()):
                for times in range(1, 9):
                    job = await manager.create("a", max_attempts=2)
                    entered = asyncio.Event()
                    task = asyncio.create_task(work(manager, job.id, entered, error))
                    await entered.wait()
                    for _ in range(times):
                        task.cancel()
                        await asyncio.sleep(0)
                    with pytest.raises(asyncio.CancelledError) as caught:
                        await task
                    left = await manager.get(job.id)
                    assert left.status == ("failed" if error else "retrying")
                    assert not error or caught.value.__context__ is error
            assert len(asyncio.all_tasks()) <= 2

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("milliseconds", range(0, 40, 2))
def test_attempt_when_event_loop_ends_is_recorded(database: Database, milliseconds: int) -> None:
    """`asyncio.run` cancels all tasks at the same time."""

    async def work(manager: Any, id: str) -> None:
        async with manager.attempt(id) as attempt:
            await attempt.update_progress(1, 2)
            await asyncio.sleep(0.01)

    async def run() -> str:
        manager = connect_async(database.url)
        managers.append(manager)
        job = await manager.create("a", max_attempts=2)
        tasks.append(asyncio.create_task(work(manager, job.id)))
        await asyncio.sleep(milliseconds / 1000)
        return job.id

    managers: list[Any] = []
    tasks: list[Any] = []
    with asyncio.Runner() as runner:
        id = runner.run(run())
        asyncio.runners._cancel_all_tasks(runner.get_loop())  # type: ignore[attr-defined]
        runner.run(managers[0].close())
    with connect(database.url) as manager:
        assert manager.get(id).status in ("pending", "retrying", "completed")


def test_attempt_cancelled_on_shared_connection_is_retrying() -> None:
    """In-memory SQLite with asyncio."""

    async def work(manager: Any, id: str) -> None:
        async with manager.attempt(id):
            await asyncio.sleep(0.001)

    async def run() -> set[str]:
        engine = configure_sqlite(create_async_engine("sqlite+aiosqlite://"))
        async with engine.begin() as connection:
            await connection.run_sync(migrate.upgrade)
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(engine))
        seen = set()
        for steps in sampled(range(60), 3):
            job = await manager.create("a", max_attempts=2)
            task = asyncio.create_task(work(manager, job.id))
            await asyncio.sleep(steps * 0.0001)
            task.cancel()
            await asyncio.wait([task])
            seen.add(str((await manager.get(job.id)).status))
        await engine.dispose()
        return seen

    seen = asyncio.run(asyncio.wait_for(run(), 60))
    assert "retrying" in seen
    assert "running" not in seen


def test_attempt_in_asyncio_timeout_is_retrying(database: Database) -> None:
    async def run() -> None:
        async with connect_async(database.url) as manager:
            job = await manager.create("a", max_attempts=2)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), manager.attempt(job.id):
                    await asyncio.sleep(60)
            assert (await manager.get(job.id)).status == "retrying"

    asyncio.run(run())
