"""Log entries of executions, and the handler that writes `logging` records to them."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextvars import copy_context
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from execution_core import (
    AttemptLost,
    ExecutionLogHandler,
    ExecutionManager,
    ExecutionNotFound,
    InvalidStateTransition,
    InvalidValue,
    LogLevel,
    SqlExecutionStore,
    StaleAttempt,
    connect,
    connect_async,
)
from execution_core.tracking.log_capture import to_log_level

from ..conftest import Database
from ..support.processes import race
from ..support.states import STATES, bring_to


def messages(manager: ExecutionManager, id: str) -> list[str]:
    return [entry.message for entry in reversed(manager.logs(id, limit=10_000))]


@pytest.mark.parametrize("state", STATES)
def test_log_in_any_state_adds_entry(any_manager: ExecutionManager, state: str) -> None:
    execution = bring_to(any_manager, state)
    entry = any_manager.log(execution.id, "refunded", level="warning", data={"by": ["ada", 1.5]})
    assert any_manager.logs(execution.id) == [entry]
    assert (entry.execution_id, entry.attempt) == (execution.id, execution.attempts)
    assert (entry.level, entry.message) == (LogLevel.WARNING, "refunded")
    assert entry.data == {"by": ["ada", 1.5]}
    assert entry.logged_at.tzinfo is UTC
    assert entry.logged_at >= execution.updated_at
    assert any_manager.get(execution.id) == execution  # no heartbeat, no change


def test_log_with_stale_attempt_is_refused(any_manager: ExecutionManager) -> None:
    second = bring_to(any_manager, "running-last")
    assert any_manager.log(second.id, "mine", attempt=2).attempt == 2
    for stale in (0, 1, 3):
        with pytest.raises(StaleAttempt):
            any_manager.log(second.id, "not mine", attempt=stale)
    any_manager.complete(second.id)
    with pytest.raises(InvalidStateTransition) as caught:
        any_manager.log(second.id, "too late", attempt=2)
    assert (caught.value.verb, caught.value.sources) == ("log", ("running",))
    assert messages(any_manager, second.id) == ["mine"]


def test_logs_are_paged(any_manager: ExecutionManager) -> None:
    id, other = any_manager.create("a").id, any_manager.create("a").id
    entries = [any_manager.log(id, str(n)) for n in range(7)]
    any_manager.log(other, "elsewhere")
    newest = entries[::-1]
    assert any_manager.logs(id, limit=3) == newest[:3]
    assert any_manager.logs(id, limit=3, before=newest[2].id) == newest[3:6]
    assert any_manager.logs(id, limit=3, before=newest[5].id) == newest[6:]
    assert any_manager.logs(id, before=newest[6].id) == []


def test_log_of_unknown_execution_raises_not_found(any_manager: ExecutionManager) -> None:
    id = "0198aaaa-0000-7000-8000-000000000000"
    for call in (any_manager.logs, lambda id: any_manager.log(id, "x")):
        for unknown in (id, "nonsense"):
            with pytest.raises(ExecutionNotFound):
                call(unknown)


def test_log_unstorable_message_is_sanitized(any_manager: ExecutionManager) -> None:
    id = any_manager.create("a").id
    assert any_manager.log(id, "a\0b\ud800c").message == "a\ufffdb\ufffdc"
    assert any_manager.log(id, "x" * 20_000).message == "x" * 10_000
    assert any_manager.log(id, "").message == ""
    assert messages(any_manager, id) == ["a\ufffdb\ufffdc", "x" * 10_000, ""]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"message": b"bytes"}, "message must be a string, not a bytes"),
        ({"message": None}, "message must be a string, not None"),
        ({"level": "loud"}, "level must be one of debug, info, warning, error, critical"),
        ({"level": 30}, "level must be one of"),
        ({"data": float("nan")}, "data is not valid JSON"),
        ({"data": {1, 2}}, "data contains a set"),
        ({"data": "\0"}, "data must not contain U\\+0000"),
        ({"attempt": True}, "attempt must be an integer"),
    ],
)
def test_log_invalid_arguments_are_refused(
    any_manager: ExecutionManager, arguments: dict[str, Any], says: str
) -> None:
    id = any_manager.create("a").id
    with pytest.raises(InvalidValue, match=says):
        any_manager.log(id, **{"message": "x", **arguments})
    assert any_manager.logs(id) == []


@pytest.mark.parametrize("data", [None, 0, "", [], {"a": None}, 1e23, "ü'\"\\;--"])
def test_log_data_round_trips(any_manager: ExecutionManager, data: object) -> None:
    id = any_manager.create("a").id
    assert any_manager.log(id, "x", data=data).data == data
    assert any_manager.logs(id)[0].data == data


def test_log_is_deleted_with_execution(any_manager: ExecutionManager) -> None:
    id = any_manager.create("a").id
    any_manager.log(id, "x")
    any_manager.delete(id)
    with pytest.raises(ExecutionNotFound):
        any_manager.logs(id)


def log_entries(number: int, url: str, id: str) -> list[str]:
    with connect(url) as manager:
        return [manager.log(id, f"{number}-{n}").message for n in range(50)]


@pytest.mark.slow
def test_log_by_eight_processes_keeps_every_entry(database: Database) -> None:
    with connect(database.url) as manager:
        id = manager.create("a").id
        said = [line for lines in race(log_entries, database.url, id) for line in lines]
        found = messages(manager, id)
    assert sorted(found) == sorted(said)
    for number in range(8):  # the entries of each process stay in order
        own = [line for line in found if line.startswith(f"{number}-")]
        assert own == [f"{number}-{n}" for n in range(50)]


def test_log_of_deleted_execution_keeps_transaction_usable(database: Database) -> None:
    """No foreign key fails: on PostgreSQL that would abort the caller's transaction."""
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    gone, other = manager.create("a"), manager.create("a")
    manager.delete(gone.id)
    with database.engine.begin() as connection:
        inside = manager.within(connection)
        with pytest.raises(ExecutionNotFound):
            inside.log(gone.id, "x")
        inside.log(other.id, "y")
    assert messages(manager, other.id) == ["y"]


def test_attempt_log_adds_entries(any_manager: ExecutionManager) -> None:
    id = any_manager.create("a", max_attempts=2).id
    with any_manager.attempt(id) as attempt:
        attempt.log("begun", data={"rows": 3})
        attempt.log("odd", level="error")
    entries = any_manager.logs(id)
    assert [(e.message, e.level, e.attempt, e.data) for e in entries] == [
        ("odd", "error", 1, None),
        ("begun", "info", 1, {"rows": 3}),
    ]


def test_attempt_log_after_loss_raises_attempt_lost(any_manager: ExecutionManager) -> None:
    id = any_manager.create("a").id
    with pytest.raises(AttemptLost), any_manager.attempt(id) as attempt:
        any_manager.cancel(id)
        attempt.log("still here")
    assert any_manager.logs(id) == []


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger whose records go to attempts only."""
    logger = logging.getLogger("tests.service")
    handler = ExecutionLogHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)


def test_log_handler_writes_to_surrounding_attempt(
    database: Database, logger: logging.Logger
) -> None:
    with connect(database.url) as manager:
        outer, inner = manager.create("a").id, manager.create("a").id
        logger.info("before")
        with manager.attempt(outer):
            logger.info("one %s", 1)
            with manager.attempt(inner):
                logger.warning("two")
            logger.critical("three")
        logger.info("after")
        assert messages(manager, outer) == ["one 1", "three"]
        assert messages(manager, inner) == ["two"]
        last = manager.logs(outer)[0]
        assert (last.level, last.attempt) == ("critical", 1)
        assert last.data == {"logger": "tests.service"}


def test_log_handler_after_inner_attempt_left_in_thread_uses_outer(
    database: Database, logger: logging.Logger
) -> None:
    """Later records go to the outer attempt, whether or not the inner object still exists."""
    with connect(database.url) as manager:
        outer = manager.create("a").id
        with manager.attempt(outer):
            inner = manager.attempt(manager.create("a").id)
            inner.__enter__()
            context = copy_context()
            leave = threading.Thread(target=inner.__exit__, args=(None, None, None))
            leave.start()
            leave.join()
            logger.info("one")
            del inner, leave
            logger.info("two")
            context.run(logger.info, "three")
        assert messages(manager, outer) == ["one", "two", "three"]


def test_log_handler_keeps_records_of_failed_attempt(
    database: Database, logger: logging.Logger
) -> None:
    with connect(database.url) as manager:
        id = manager.create("a", max_attempts=2).id
        with pytest.raises(ZeroDivisionError), manager.attempt(id, retry_on=ZeroDivisionError):
            try:
                1 / 0  # noqa: B018
            except ZeroDivisionError:
                logger.exception("it broke")
                raise
        with manager.attempt(id):
            logger.info("again")
        first, second = reversed(manager.logs(id))
        assert first.message.startswith("it broke\nTraceback")
        assert "ZeroDivisionError" in first.message
        assert [first.attempt, second.attempt] == [1, 2]


def test_log_handler_does_not_wait_for_locks(database: Database, logger: logging.Logger) -> None:
    """Not even for the lock that the block itself holds in SQLite."""
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    id = manager.create("a").id
    with manager.attempt(id) as attempt:
        with database.engine.begin() as connection:
            attempt.within(connection).update_progress(1, 2)
            for n in range(100):
                logger.info("%d", n)
        attempt.update_progress(2, 2)
    assert messages(manager, id) == [str(n) for n in range(100)]


def test_log_handler_in_threads_uses_own_attempt(
    database: Database, logger: logging.Logger
) -> None:
    with connect(database.url) as manager:
        ids = [manager.create("a").id for _ in range(4)]

        def work(id: str) -> None:
            with manager.attempt(id):
                for n in range(25):
                    logger.info("%s %d", id, n)

        threads = [threading.Thread(target=work, args=(id,)) for id in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for id in ids:
            assert messages(manager, id) == [f"{id} {n}" for n in range(25)]


def test_log_handler_in_thread_without_attempt_drops_records(
    database: Database, logger: logging.Logger
) -> None:
    with connect(database.url) as manager:
        id = manager.create("a").id
        with manager.attempt(id):
            thread = threading.Thread(target=lambda: logger.info("whose?"))
            thread.start()
            thread.join()
        assert manager.logs(id) == []


def test_log_handler_within_transaction_follows_it(
    database: Database, logger: logging.Logger
) -> None:
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    kept, lost = manager.create("a").id, manager.create("a").id
    with database.engine.begin() as connection, manager.within(connection).attempt(kept) as attempt:
        logger.info("one")
        attempt.update_progress(1, 2)
        assert [e.message for e in manager.within(connection).logs(kept)] == ["one"]
        logger.info("two")
    with database.engine.connect() as connection:
        with manager.within(connection).attempt(lost):
            logger.info("rolled back")
        connection.rollback()
    assert messages(manager, kept) == ["one", "two"]
    assert manager.logs(lost) == []


def test_log_handler_on_in_memory_sqlite_works(logger: logging.Logger) -> None:
    from execution_core import migrate
    from execution_core.sql.driver.engine import create_sync_engine

    engine = create_sync_engine("sqlite://")
    migrate.upgrade(engine)
    manager = ExecutionManager(SqlExecutionStore(engine))
    id = manager.create("a").id
    with manager.attempt(id):
        logger.info("one")
    assert messages(manager, id) == ["one"]
    engine.dispose()


def test_log_handler_on_root_ignores_own_statements(database: Database) -> None:
    """A handler on the root logger also receives the records of its own statements."""
    handler, root = ExecutionLogHandler(), logging.getLogger()
    engine_logger = logging.getLogger("sqlalchemy.engine")
    level = engine_logger.level
    root.addHandler(handler)
    engine_logger.setLevel(logging.INFO)
    try:
        manager = ExecutionManager(SqlExecutionStore(database.engine))
        id = manager.create("a").id
        with manager.attempt(id) as attempt:
            attempt.update_progress(1, 2)
        with database.engine.begin() as connection:
            inside = manager.within(connection)
            other = inside.create("a").id
            with inside.attempt(other) as attempt:
                attempt.update_progress(1, 2)
                attempt.update_progress(2, 2)
    finally:
        root.removeHandler(handler)
        engine_logger.setLevel(level)
    for each in (id, other):
        found = messages(manager, each)
        assert any("UPDATE executions" in line for line in found)
        assert not any("INSERT INTO execution_logs" in line for line in found)


def test_log_handler_write_failure_does_not_fail_attempt(
    database: Database, logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    id = manager.create("a").id
    database.run("ALTER TABLE execution_logs RENAME TO elsewhere")
    try:
        with manager.attempt(id) as attempt:
            for n in range(3):
                logger.info("%d", n)
            attempt.result = "done"
    finally:
        database.run("ALTER TABLE elsewhere RENAME TO execution_logs")
    assert manager.get(id).result == "done"
    assert "could not add to its log" in caplog.text
    assert manager.logs(id) == []


def test_log_handler_after_loss_drops_records(database: Database, logger: logging.Logger) -> None:
    with connect(database.url) as manager:
        id = manager.create("a").id
        with pytest.raises(AttemptLost), manager.attempt(id):
            manager.cancel(id)
            logger.info("dropped")
        assert manager.logs(id) == []


@pytest.mark.parametrize(
    ("number", "level"),
    [(0, "debug"), (10, "debug"), (19, "debug"), (20, "info"), (25, "info"), (30, "warning"),
     (40, "error"), (49, "error"), (50, "critical"), (99, "critical")],
)  # fmt: skip
def test_log_level_maps_python_levels(number: int, level: str) -> None:
    assert to_log_level(number) == level


def test_log_handler_in_tasks_uses_own_attempt(database: Database, logger: logging.Logger) -> None:
    async def main() -> None:
        async with connect_async(database.url) as manager:
            ids = [(await manager.create("a")).id for _ in range(4)]

            async def work(id: str) -> None:
                async with manager.attempt(id) as attempt:
                    for n in range(10):
                        logger.info("%s %d", id, n)
                        await attempt.update_progress(n, 10)
                    await asyncio.to_thread(logger.info, "%s in a thread", id)
                    logger.info("%s last", id)

            await asyncio.gather(*map(work, ids))
            logger.info("of no attempt")
            for id in ids:
                found = [e.message for e in reversed(await manager.logs(id))]
                assert sorted(found) == sorted(
                    [*(f"{id} {n}" for n in range(10)), f"{id} in a thread", f"{id} last"]
                )
                assert [line for line in found if line.split()[1].isdigit()] == [
                    f"{id} {n}" for n in range(10)
                ]

    asyncio.run(main())


def test_log_handler_in_cancelled_task_keeps_records(
    database: Database, logger: logging.Logger
) -> None:
    ids: list[str] = []

    async def main() -> None:
        async with connect_async(database.url) as manager:
            ids.append((await manager.create("a")).id)
            async with manager.attempt(ids[0]):
                for n in range(20):
                    logger.info("%d", n)
                raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    with connect(database.url) as manager:
        assert messages(manager, ids[0]) == [str(n) for n in range(20)]
        error = manager.get(ids[0]).error
        assert error is not None
        assert error.code == "interrupted"


def test_log_handler_within_async_transaction_follows_it(
    database: Database, logger: logging.Logger, tmp_path: Path
) -> None:
    from execution_core import AsyncExecutionManager, AsyncSqlExecutionStore
    from execution_core.sql.driver.engine import create_async_engine

    async def main() -> None:
        engine = create_async_engine(database.url)
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(engine))
        id = (await manager.create("a")).id
        async with engine.begin() as connection:
            inside = manager.within(connection)
            async with inside.attempt(id) as attempt:
                logger.info("one")
                await attempt.update_progress(1, 2)
                assert [e.message for e in await inside.logs(id)] == ["one"]
                logger.info("two")
        assert [e.message for e in await manager.logs(id)] == ["two", "one"]
        await engine.dispose()

    asyncio.run(main())
