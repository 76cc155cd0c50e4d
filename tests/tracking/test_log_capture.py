"""Log capture by `ExecutionLogHandler` in blocks that are left in unusual ways."""

import asyncio
import gc
import logging
import threading
from collections.abc import Iterator

import pytest

from execution_core import (
    ExecutionLogHandler,
    connect,
    connect_async,
)
from execution_core.stores import NewLogEntry

from ..conftest import Database
from .test_logs import messages

# SQLite has one writer at a time, so no transaction can interfere.
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tests.attacks")
    handler = ExecutionLogHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)


def test_log_capture_blocks_left_out_of_order(database: Database, logger: logging.Logger) -> None:
    """As two generators can: an open block captures records, a block that was left does not."""
    with connect(database.url) as manager:
        around, first, second = (manager.create("a").id for _ in range(3))
        with manager.attempt(around):
            one, other = manager.attempt(first), manager.attempt(second)
            one.__enter__()
            other.__enter__()
            one.__exit__(None, None, None)
            logger.info("in the second")
            other.__exit__(None, None, None)
            logger.info("around")
        logger.info("outside")
        assert messages(manager, first) == []
        assert messages(manager, second) == ["in the second"]
        assert messages(manager, around) == ["around"]


def test_log_capture_block_left_in_another_thread(
    database: Database, logger: logging.Logger
) -> None:
    with connect(database.url) as manager:
        around, moved, own = (manager.create("a").id for _ in range(3))

        def leave() -> None:
            with manager.attempt(own):
                attempt.__exit__(None, None, None)
                logger.info("still in its own")

        with manager.attempt(around):
            attempt = manager.attempt(moved)
            attempt.__enter__()
            logger.info("moved")
            thread = threading.Thread(target=leave)
            thread.start()
            thread.join()
            logger.info("around")
        assert messages(manager, moved) == ["moved"]
        assert messages(manager, own) == ["still in its own"]
        assert messages(manager, around) == ["around"]


def lock(database: Database, id: str) -> str:
    """Return SQL that blocks new log entries of an execution."""
    if database.name == "postgresql":
        return f"SELECT 1 FROM executions WHERE id = '{id}' FOR UPDATE"
    return "UPDATE executions SET type = type"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_log_capture_full_buffer_counts_dropped_records(
    database: Database, mode: str, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("threads", "attempt_log"):
        monkeypatch.setattr(f"execution_core.tracking.{module}.MAX_BUFFERED_ENTRIES", 100)
    waiting = 0

    def log_much(id: str) -> None:
        nonlocal waiting
        with database.engine.begin() as connection:
            connection.exec_driver_sql(lock(database, id))
            for n in range(1000):
                logger.info("%d", n)
            waiting = sum(isinstance(each, NewLogEntry) for each in gc.get_objects())

    async def main(id: str) -> None:
        async with connect_async(database.url) as manager, manager.attempt(id):
            log_much(id)

    with connect(database.url) as manager:
        id = manager.create("a").id
        if mode == "async":
            asyncio.run(main(id))
        else:
            with manager.attempt(id):
                log_much(id)
        *found, last = reversed(manager.logs(id, limit=1000))
    assert waiting <= 110
    numbers = [int(entry.message) for entry in found]
    assert numbers == sorted(set(numbers))
    message = f"{1000 - len(found)} records were dropped: 100 were waiting to be written"
    assert (last.message, last.level) == (message, "warning")
    assert last.data == {"logger": "execution_core"}


@on_postgresql
def test_log_capture_cancelled_loop_writes_pending_entry(
    database: Database, logger: logging.Logger
) -> None:
    waits = (
        "SELECT 1 FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    cancelled = threading.Event()
    execution = []

    def hold(id: str, held: threading.Event) -> None:
        with database.engine.begin() as connection:
            connection.exec_driver_sql(lock(database, id))
            held.set()
            cancelled.wait()
            for _ in range(300):  # as long as a cancelled statement could take to end
                if not database.rows(waits):
                    break

    async def work(held: threading.Event) -> None:
        async with connect_async(database.url) as manager:
            execution.append(await manager.create("a"))
            async with manager.attempt(execution[0].id):
                holder.append(threading.Thread(target=hold, args=(execution[0].id, held)))
                holder[0].start()
                await asyncio.to_thread(held.wait)
                logger.info("on its way")
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()

    async def main() -> None:
        task = asyncio.create_task(work(threading.Event()))
        while not await asyncio.to_thread(database.rows, waits):
            assert not task.done()

    holder: list[threading.Thread] = []
    asyncio.run(main())
    holder[0].join()
    with connect(database.url) as manager:
        assert messages(manager, execution[0].id) == ["on its way"]
