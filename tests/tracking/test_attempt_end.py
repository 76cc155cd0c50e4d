"""End an attempt inside its block: `attempt.within(session).complete(...)` and `fail`."""

import asyncio
import logging
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from execution_core import AttemptLost, ExecutionLogHandler, ExecutionManager, InvalidValue
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine

from ..conftest import Blocking, Database
from ..support.attempts import Outage


@pytest.fixture
def engine(database: Database, mode: str, runner: asyncio.Runner) -> Iterator[Any]:
    if mode == "sync":
        engine: Any = create_sync_engine(database.url)
        yield engine
        engine.dispose()
    else:
        engine = create_async_engine(database.url)
        yield engine
        runner.run(engine.dispose())


@pytest.fixture
def connection(engine: Any, mode: str, runner: asyncio.Runner) -> Iterator[Any]:
    connection = engine.connect()
    if mode == "sync":
        yield connection
        connection.close()
    else:
        yield Blocking(runner.run(connection.__aenter__()), runner)
        runner.run(connection.close())


def updates(database: Database, id: str) -> list[Any]:
    """Return what changes with each write of an execution."""
    columns = "status, attempts, updated_at, result, write_token"
    return database.rows(f"SELECT {columns} FROM executions WHERE id = :id", id=id)


def test_within_complete_commits_with_the_callers_rows(
    database: Database, manager: ExecutionManager, connection: Any
) -> None:
    id, row = manager.create("ship").id, manager.create("order").id
    with manager.attempt(id) as attempt:
        inside = attempt.within(connection)
        manager_inside = manager.within(connection)
        manager_inside.annotate(row, {"shipped": True})
        inside.complete({"sent": 3})
        connection.commit()
        committed = updates(database, id)
        attempt.result = "ignored"
    assert updates(database, id) == committed  # the end of the block wrote nothing
    found = manager.get(id)
    assert (found.status, found.result, found.attempts) == ("completed", {"sent": 3}, 1)
    assert manager.get(row).metadata == {"shipped": True}


@pytest.mark.parametrize("error", [None, Outage("no")])
def test_within_complete_rolled_back_leaves_the_end_to_the_block(
    manager: ExecutionManager, connection: Any, error: Exception | None
) -> None:
    id = manager.create("ship").id
    try:
        with manager.attempt(id) as attempt:
            attempt.within(connection).complete("rolled back")
            connection.rollback()
            attempt.result = "of the block"
            if error:
                raise error
    except Outage:
        pass
    found = manager.get(id)
    expected = ("failed", None) if error else ("completed", "of the block")
    assert (found.status, found.result) == expected


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_within_complete_open_transaction_decides_after_the_block(
    manager: ExecutionManager, connection: Any, end: str
) -> None:
    id = manager.create("ship").id
    began = time.monotonic()
    with manager.attempt(id) as attempt:
        attempt.within(connection).complete("mine")
    assert time.monotonic() - began < 5
    assert manager.get(id).status == "running"
    getattr(connection, end)()
    found = manager.get(id)
    expected = ("completed", "mine") if end == "commit" else ("running", None)
    assert (found.status, found.result) == expected


def test_within_fail_commits_with_the_callers_rows(
    database: Database, manager: ExecutionManager, connection: Any
) -> None:
    id = manager.create("ship", max_attempts=2).id
    with manager.attempt(id) as attempt:
        attempt.within(connection).fail("declined", retry_after=timedelta(0))
        connection.commit()
        committed = updates(database, id)
    assert updates(database, id) == committed
    assert manager.get(id).status == "retrying"
    with manager.attempt(id) as attempt:
        attempt.within(connection).fail("declined for good")
        connection.commit()
        assert manager.get(id).status == "failed"
        with pytest.raises(AttemptLost):
            attempt.heartbeat()
    assert manager.get(id).status == "failed"


def test_within_fail_committed_and_retried_at_once_ends_the_block(
    manager: ExecutionManager, connection: Any
) -> None:
    id = manager.create("ship", max_attempts=2).id
    with manager.attempt(id) as attempt:
        attempt.within(connection).fail("declined", retryable=True)
        connection.commit()
        manager.start(id)
    found = manager.get(id)
    assert (found.status, found.attempts) == ("running", 2)


def test_within_complete_rolled_back_then_cancelled_is_lost(
    manager: ExecutionManager, connection: Any
) -> None:
    id = manager.create("ship").id
    with (
        pytest.raises(AttemptLost, match="its status is cancelled"),
        manager.attempt(id) as attempt,
    ):
        attempt.within(connection).complete()
        connection.rollback()
        manager.cancel(id)


def test_within_fail_rolled_back_then_cancelled_is_lost(
    manager: ExecutionManager, connection: Any
) -> None:
    id = manager.create("ship", max_attempts=2).id
    with (
        pytest.raises(AttemptLost, match="its status is cancelled"),
        manager.attempt(id) as attempt,
    ):
        attempt.within(connection).fail("declined", retryable=True)
        connection.rollback()
        manager.cancel(id)


def test_within_complete_rolled_back_to_a_savepoint_is_not_an_end(
    manager: ExecutionManager, connection: Any
) -> None:
    id = manager.create("ship").id
    with pytest.raises(RuntimeError, match="End the transaction first"), manager.attempt(id) as it:
        connection.execute(text("SAVEPOINT before"))
        it.within(connection).complete()
        connection.execute(text("ROLLBACK TO SAVEPOINT before"))
    connection.rollback()


@pytest.mark.parametrize("how", ["complete", "fail", "within"])
def test_heartbeat_after_the_attempt_has_ended_itself_is_no_loss(
    manager: ExecutionManager, connection: Any, how: str
) -> None:
    id = manager.create("ship", max_attempts=2).id
    with manager.attempt(id, heartbeat=timedelta(seconds=0.02)) as attempt:
        if how == "within":
            attempt.within(connection).complete()
            connection.commit()
        elif how == "fail":
            attempt.fail("no", retryable=True)
        else:
            attempt.complete()
        for _ in range(10):
            time.sleep(0.01)
            manager.get(id)  # lets the event loop send heartbeats
        assert not attempt.lost.is_set()


def test_block_that_ends_in_an_open_transaction_waits_for_nothing(
    manager: ExecutionManager, connection: Any
) -> None:
    """On SQLite its heartbeats and its log would wait for the caller, who waits for the block."""
    logger = logging.getLogger("host")
    handler = ExecutionLogHandler()
    logger.addHandler(handler)
    id = manager.create("ship").id
    began = time.monotonic()
    try:
        with manager.attempt(id, heartbeat=timedelta(seconds=0.02)) as attempt:
            attempt.within(connection).complete(1)
            logger.warning("shipped")
            time.sleep(0.1)
    finally:
        logger.removeHandler(handler)
    assert time.monotonic() - began < 5
    connection.commit()
    assert manager.get(id).result == 1


def test_within_complete_of_a_lost_attempt_is_refused(
    manager: ExecutionManager, connection: Any
) -> None:
    id = manager.create("ship").id
    with pytest.raises(AttemptLost), manager.attempt(id) as attempt:
        manager.cancel(id)
        attempt.within(connection).complete()


def test_within_complete_of_an_unstorable_result_is_refused(
    manager: ExecutionManager, connection: Any
) -> None:
    id = manager.create("ship").id
    with manager.attempt(id) as attempt:
        with pytest.raises(InvalidValue, match="result"):
            attempt.within(connection).complete(object())
        connection.rollback()
    assert manager.get(id).status == "completed"


def test_complete_and_fail_without_transaction_end_the_attempt_at_once(
    database: Database, manager: ExecutionManager
) -> None:
    for verb, argument, status in (("complete", 7, "completed"), ("fail", "no", "failed")):
        id = manager.create("ship").id
        with manager.attempt(id) as attempt:
            getattr(attempt, verb)(argument)
            ended = updates(database, id)
            assert manager.get(id).status == status
        assert updates(database, id) == ended


def test_write_beside_its_open_transaction_is_refused_at_once(
    manager: ExecutionManager, connection: Any
) -> None:
    """Each would wait for the other: until the lock timeout, a minute later."""
    id = manager.create("ship", max_attempts=2).id
    began = time.monotonic()
    with manager.attempt(id) as attempt:
        attempt.within(connection).checkpoint("k", 1)
        with pytest.raises(RuntimeError, match="a transaction of yours that it writes in"):
            attempt.checkpoint("k", 2)
        connection.commit()
        attempt.checkpoint("k", 3)
        attempt.within(connection).checkpoint("k", 4)
        connection.rollback()
        attempt.update_progress(1, 2)
    assert manager.get(id).checkpoints == {"k": 3}
    id = manager.create("ship", max_attempts=2).id
    with pytest.raises(RuntimeError, match="still open"), manager.attempt(id) as attempt:
        attempt.within(connection).checkpoint("k", 1)
    connection.rollback()
    assert time.monotonic() - began < 10


def test_error_beside_an_open_transaction_of_the_attempt_is_raised_and_not_recorded(
    manager: ExecutionManager, connection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    id = manager.create("ship", max_attempts=2).id
    with pytest.raises(Outage), manager.attempt(id) as attempt:
        attempt.within(connection).checkpoint("k", 1)
        raise Outage
    connection.rollback()
    assert manager.get(id).status == "running"
    assert f"attempt 1 of execution {id} could not be recorded" in caplog.text


def test_within_complete_in_a_session_inside_out(database: Database) -> None:
    """The block of the attempt ends inside the block of the session, or the other way round."""
    from execution_core import connect

    engine = create_sync_engine(database.url)
    with connect(database.url) as manager:
        first, second = (manager.create("ship").id for _ in range(2))
        with Session(engine) as session, session.begin(), manager.attempt(first) as attempt:
            attempt.within(session).complete(1)
        with manager.attempt(second) as attempt:
            with Session(engine) as session, session.begin():
                attempt.within(session).complete(2)
            logging.getLogger("host").info("after the end")
        assert [manager.get(id).result for id in (first, second)] == [1, 2]
    engine.dispose()
