"""Heartbeats of an attempt, until its last write."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ExecutionLogHandler,
    ExecutionManager,
    SqlExecutionStore,
    connect,
)
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine

from ..conftest import Database

HEARTBEAT = timedelta(seconds=0.05)
STALLED_AFTER = timedelta(seconds=0.4)
ENTRIES = 20
SLOW = 0.05
"""Seconds that a log entry takes: all of them take longer than STALLED_AFTER."""


class SlowLog(SqlExecutionStore):
    def log(self, *args: Any) -> Any:
        time.sleep(SLOW)
        return super().log(*args)


class AsyncSlowLog(AsyncSqlExecutionStore):
    async def log(self, *args: Any) -> Any:
        await asyncio.sleep(SLOW)
        return await super().log(*args)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tests.heartbeats")
    logger.setLevel(logging.INFO)
    handler = ExecutionLogHandler()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_heartbeat_continues_while_log_is_flushed(
    database: Database, mode: str, logger: logging.Logger
) -> None:
    """A slow flush at the end of a block must not let a sweep take the execution."""

    def run_sync(id: str) -> None:
        engine = create_sync_engine(database.url)
        manager = ExecutionManager(SlowLog(engine))
        with manager.attempt(id, heartbeat=HEARTBEAT):
            for n in range(ENTRIES):
                logger.info("entry %d", n)
        engine.dispose()

    async def run_async(id: str) -> None:
        engine = create_async_engine(database.url)
        manager = AsyncExecutionManager(AsyncSlowLog(engine))
        async with manager.attempt(id, heartbeat=HEARTBEAT):
            for n in range(ENTRIES):
                logger.info("entry %d", n)
        await engine.dispose()

    swept, stopped = [], threading.Event()
    with connect(database.url) as watcher:

        def sweep() -> None:
            while not stopped.wait(0.02):
                swept.extend(watcher.sweep(stalled_after=STALLED_AFTER))

        sweeper = threading.Thread(target=sweep)
        sweeper.start()
        id = watcher.create("work").id
        try:
            run_sync(id) if mode == "sync" else asyncio.run(run_async(id))
        finally:
            stopped.set()
            sweeper.join()
        assert swept == []
        assert watcher.get(id).status == "completed"
        assert len(watcher.logs(id)) == ENTRIES
