"""Prunes against whoever holds what they touch, and `logging` where blocks are left oddly."""

import asyncio
import gc
import logging
import random
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import text

from execution_core import (
    ExecutionLogHandler,
    ExecutionManager,
    SqlExecutionStore,
    connect,
    connect_async,
)
from execution_core.stores import NewLogEntry

from ..conftest import Database
from ..support.situations import bring_to
from ..tracking.test_logs import messages

NOW = timedelta(0)
SOON = "SET LOCAL lock_timeout = '5s'"  # a failure instead of a wait for ever

# SQLite has one writer at a time: nothing can come between.
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


# --- prune -------------------------------------------------------------------------------------


@on_postgresql
def test_a_child_that_is_being_retried_keeps_its_parent(database: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    parent = bring_to(manager, "completed")
    child = manager.create("step", parent_id=parent.id, max_attempts=2)
    manager.start(child.id)
    manager.fail(child.id, "no")
    with database.engine.begin() as worker:
        manager.within(worker).retry(child.id)
        with database.engine.begin() as connection:
            connection.execute(text(SOON))
            assert manager.within(connection).prune(NOW) == 0
    assert manager.prune(NOW) == 0
    assert manager.get(child.id).parent_id == parent.id
    manager.fail(child.id, "gave up")
    assert manager.prune(NOW) == 2


@on_postgresql
def test_nobody_waits_for_a_prune_that_waits_for_him(database: Database) -> None:
    """What a worker does with a replay and what it replays ends in no deadlock."""
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    old = bring_to(manager, "completed")
    again = manager.replay(old.id)
    with database.engine.begin() as worker:
        inside = manager.within(worker)
        inside.start(again.id)
        with database.engine.begin() as connection:
            connection.execute(text(SOON))
            assert manager.within(connection).prune(NOW) == 0
        worker.execute(text(SOON))
        inside.log(old.id, "done again")
    assert manager.prune(NOW) == 1
    assert manager.get(again.id).replay_of is None


def test_pruners_of_families_do_not_wait_for_each_other(database: Database) -> None:
    """Those that one deletes are parents and replays of those that the other deletes."""
    problems: list[BaseException] = []
    with connect(database.url) as manager:

        def prune(begin: threading.Barrier) -> None:
            begin.wait()
            try:
                while manager.prune(NOW, limit=15):
                    pass
            except Exception as problem:
                problems.append(problem)

        for seed in range(3):
            parents = [manager.create("workflow").id for _ in range(30)]
            ids = parents + [
                manager.create("step", parent_id=id).id for id in parents for _ in (1, 2)
            ]
            random.Random(seed).shuffle(ids)
            for id in ids:
                manager.cancel(id)
            for id in ids[:30]:
                manager.cancel(manager.replay(id).id)
            begin = threading.Barrier(4)
            threads = [threading.Thread(target=prune, args=(begin,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert problems == []
            while manager.prune(NOW):
                pass
            assert manager.list() == []


def test_two_that_are_each_others_parents(database: Database) -> None:
    with connect(database.url) as manager:
        first, second = bring_to(manager, "completed"), bring_to(manager, "failed")
        third = bring_to(manager, "running")
        for child, parent in ((first, second), (second, first), (third, first)):
            database.run(
                "UPDATE executions SET parent_id = :parent, replay_of = :parent WHERE id = :id",
                id=child.id,
                parent=parent.id,
            )
        assert manager.prune(NOW) == 1
        assert manager.get(third.id).parent_id == first.id
        manager.cancel(third.id)
        assert manager.prune(NOW) == 2


# --- replay ------------------------------------------------------------------------------------


def test_a_step_is_replayed_in_the_callers_transaction_without_a_warning(
    database: Database,
) -> None:
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    parent = manager.create("workflow")
    step = manager.create("step", parent_id=parent.id)
    manager.cancel(step.id)
    with database.engine.begin() as connection:
        again = manager.within(connection).replay(step.id)
    assert (again.parent_id, again.replay_of) == (parent.id, step.id)


# --- logging -----------------------------------------------------------------------------------


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tests.attacks")
    handler = ExecutionLogHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)


def test_blocks_that_are_left_in_another_order(database: Database, logger: logging.Logger) -> None:
    """As those of two generators are: what is left hears nothing, and what is not left does."""
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


def test_a_block_that_is_left_in_another_thread(database: Database, logger: logging.Logger) -> None:
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
    """SQL that keeps everybody from adding to the log of an execution."""
    if database.name == "postgresql":
        return f"SELECT 1 FROM executions WHERE id = '{id}' FOR UPDATE"
    return "UPDATE executions SET type = type"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_what_is_dropped_is_counted(
    database: Database, mode: str, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("threads", "attempt_state"):
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
    said = f"{1000 - len(found)} records were dropped: 100 were waiting to be written"
    assert (last.message, last.level) == (said, "warning")
    assert last.data == {"logger": "execution_core"}


@on_postgresql
def test_a_loop_that_ends_while_a_line_is_on_its_way(
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
            for _ in range(300):  # until a cancelled statement would have ended
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
