"""Attempts as with-blocks: what they record by themselves, and when they stop."""

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import StaticPool, create_engine, text
from sqlalchemy.exc import OperationalError

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    AttemptLost,
    Backoff,
    ExecutionManager,
    ExecutionNotFound,
    InvalidStateTransition,
    InvalidValue,
    SqlExecutionStore,
    configure_sqlite,
    connect,
    connect_async,
    migrate,
)
from execution_core.sql.driver.engine import create_async_engine

from ..conftest import Database, open_manager
from .test_races import assert_legal

Taken = Callable[[ExecutionManager, str], Any]
TAKEN: dict[str, tuple[Taken, str]] = {
    "cancelled": (lambda m, id: m.cancel(id, "enough"), "its status is cancelled"),
    "timed out": (lambda m, id: m.timeout(id), "its status is timed_out"),
    "to be retried": (lambda m, id: (m.timeout(id), m.retry(id)), "its status is retrying"),
    "taken over": (
        lambda m, id: (m.timeout(id), m.retry(id), m.start(id)),
        "attempt 2 has taken over",
    ),
    "completed": (lambda m, id: m.complete(id), "its status is completed"),
    "failed": (lambda m, id: m.fail(id, "by hand"), "its status is failed"),
    "deleted": (lambda m, id: m.delete(id), "it was deleted"),
}

# --- entering and leaving ----------------------------------------------------------------------


def test_a_block_starts_and_completes(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a", {"n": 1})
    with any_manager.attempt(job.id, worker="host") as attempt:
        running = any_manager.get(job.id)
        assert (running.status, running.worker, running.attempts) == ("running", "host", 1)
        assert attempt.execution == running
        assert attempt.number == 1
        assert attempt.checkpoints == {}
        attempt.update_progress(1, 2, message="half")
        attempt.checkpoint("k", {"v": [1]})
        attempt.advance(2, 2, key="l", value=7)
        attempt.heartbeat()
        assert attempt.checkpoints == {"k": {"v": [1]}, "l": 7}
        attempt.result = {"done": True}
    done = any_manager.get(job.id)
    assert (done.status, done.result) == ("completed", {"done": True})
    assert done.checkpoints == {"k": {"v": [1]}, "l": 7}
    assert done.progress is not None
    assert (done.progress.current, done.progress.message) == (2, None)
    assert attempt.retry_after is None


def test_without_a_result(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with any_manager.attempt(job.id):
        pass
    assert (any_manager.get(job.id).status, any_manager.get(job.id).result) == ("completed", None)


def test_what_start_refuses_the_block_refuses(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    any_manager.cancel(job.id)
    with (
        pytest.raises(InvalidStateTransition, match="its status is cancelled, not pending or"),
        any_manager.attempt(job.id),
    ):
        pytest.fail("it was entered")
    for strange in ("nobody", "0198a000-0000-7000-8000-000000000001"):
        with pytest.raises(ExecutionNotFound), any_manager.attempt(strange):
            pytest.fail("it was entered")


def test_what_was_claimed_is_not_started_again(any_manager: ExecutionManager) -> None:
    any_manager.create("a", max_attempts=2)
    (claimed,) = any_manager.claim(worker="host")
    with any_manager.attempt(claimed) as attempt:
        assert attempt.number == 1
        assert attempt.execution is claimed
    done = any_manager.get(claimed.id)
    assert (done.status, done.attempts, done.worker) == ("completed", 1, "host")


@pytest.mark.parametrize("taken", TAKEN)
def test_what_was_taken_since_its_claim_is_not_worked_on(
    any_manager: ExecutionManager, taken: str
) -> None:
    any_manager.create("a", max_attempts=3)
    (claimed,) = any_manager.claim()
    TAKEN[taken][0](any_manager, claimed.id)
    after = None if taken == "deleted" else any_manager.get(claimed.id)
    with pytest.raises(AttemptLost), any_manager.attempt(claimed):
        pytest.fail("it was entered")
    if after is not None:
        assert any_manager.get(claimed.id) == after


def test_a_worker_is_named_where_an_attempt_starts(any_manager: ExecutionManager) -> None:
    any_manager.create("a")
    (claimed,) = any_manager.claim()
    with pytest.raises(InvalidValue, match="worker is already set"):
        any_manager.attempt(claimed, worker="other")


def test_what_nobody_has_started_is_given_by_its_id(any_manager: ExecutionManager) -> None:
    """An execution that `create` returned may run elsewhere: its key finds any status."""
    job = any_manager.create("a")
    with pytest.raises(
        InvalidValue,
        match="and this is pending: give its id",
    ):
        any_manager.attempt(job)


def test_an_attempt_has_one_block(any_manager: ExecutionManager) -> None:
    attempt = any_manager.attempt(any_manager.create("a", max_attempts=3).id)
    assert not attempt.started
    with pytest.raises(RuntimeError, match="The attempt starts with its block"):
        _ = attempt.number
    for early in (lambda: attempt.each("abc"), lambda: attempt.checkpoints):
        with pytest.raises(RuntimeError, match="The attempt starts with its block"):
            early()
    with attempt:
        assert attempt.started
        for _ in range(2):
            with pytest.raises(RuntimeError, match="An attempt has one block"), attempt:
                pytest.fail("it was entered")
    with pytest.raises(RuntimeError, match="An attempt has one block"), attempt:
        pytest.fail("it was entered")
    assert any_manager.get(attempt.execution.id).attempts == 1


class Outage(Exception):
    pass


class Worse(Outage):
    pass


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Liar(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return AttemptLost


EXCEPTIONS: list[tuple[BaseException, str, str | None]] = [
    # the exception, and then the status and the code; by default as its class is called
    (ValueError("no"), "failed", None),
    (Outage("down"), "retrying", None),
    (Worse("down"), "retrying", None),
    (KeyboardInterrupt(), "retrying", "interrupted"),
    (SystemExit(3), "retrying", "interrupted"),
    (asyncio.CancelledError(), "retrying", "interrupted"),
    (GeneratorExit(), "retrying", "interrupted"),
    (StopIteration(7), "failed", None),
    (StopAsyncIteration(), "failed", None),
    (Unreadable(), "failed", None),
    (ValueError("nul \0 and half a \ud800"), "failed", None),
    (ExceptionGroup("two", [ValueError(1), TypeError(2)]), "failed", None),
    (BaseExceptionGroup("two", [KeyboardInterrupt()]), "retrying", "interrupted"),
    (AttemptLost("another one's", 1, None), "failed", None),
    (ExceptionGroup("all of it", [Outage(), ExceptionGroup("too", [Worse()])]), "retrying", None),
    (ExceptionGroup("part of it", [Outage(), ValueError()]), "failed", None),
    (Liar(), "failed", None),
    (ValueError("x" * 3_000_000), "failed", None),
]


@pytest.mark.parametrize(
    ("error", "status", "code"), EXCEPTIONS, ids=lambda value: type(value).__name__
)
def test_every_exception_goes_on_as_it_came(
    any_manager: ExecutionManager, error: BaseException, status: str, code: str | None
) -> None:
    job = any_manager.create("a", max_attempts=2)
    cause = LookupError("cause")
    error.__cause__, error.__context__ = cause, None
    facts = dict(vars(error)), error.args
    with pytest.raises(type(error)) as caught, any_manager.attempt(job.id, retry_on=(Outage,)):
        raise error
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (cause, None)
    assert (dict(vars(error)), error.args) == facts
    left = any_manager.get(job.id)
    assert left.status == status
    assert left.error is not None
    assert left.error.code == (code or type(error).__qualname__)
    assert left.error.retryable == (status == "retrying")
    assert left.error.stack is not None
    assert "in test_every_exception" in left.error.stack or len(left.error.stack) == 100_000
    error.__traceback__ = error.__cause__ = None


def test_the_last_attempt_fails_whatever_is_retryable(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with pytest.raises(Outage), any_manager.attempt(job.id, retry_on=Outage) as attempt:
        raise Outage
    assert any_manager.get(job.id).status == "failed"
    assert attempt.retry_after is None


def test_a_backoff_delays_the_next_attempt(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a", max_attempts=4)
    backoff = Backoff(timedelta(minutes=1), factor=3, jitter=0)
    for minutes in (1, 3, 9):
        with (
            pytest.raises(Outage),
            any_manager.attempt(job.id, retry_on=Outage, backoff=backoff) as attempt,
        ):
            raise Outage
        left = any_manager.get(job.id)
        assert attempt.retry_after == timedelta(minutes=minutes)
        assert left.due_at == left.updated_at + timedelta(minutes=minutes)
    with (
        pytest.raises(Outage),
        any_manager.attempt(job.id, retry_on=Outage, backoff=backoff),
    ):
        raise Outage
    assert any_manager.get(job.id).due_at is None


def test_an_interruption_waits_for_nothing(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a", max_attempts=2)
    backoff = Backoff(timedelta(minutes=1))
    with pytest.raises(SystemExit), any_manager.attempt(job.id, backoff=backoff) as attempt:
        raise SystemExit
    assert any_manager.get(job.id).due_at is None
    assert attempt.retry_after == timedelta(0)


class Untidy(dict[str, int]):
    def values(self) -> Any:
        raise AttributeError("result of mine")


@pytest.mark.parametrize("result", [{1, 2}, float("nan"), "\0", b"bytes", Untidy(a=1)], ids=repr)
def test_a_result_that_cannot_be_stored_is_a_failure(
    any_manager: ExecutionManager, result: Any
) -> None:
    job = any_manager.create("a")
    with (
        pytest.raises((InvalidValue, AttributeError), match=r"^result "),
        any_manager.attempt(job.id) as attempt,
    ):
        attempt.result = result
    left = any_manager.get(job.id)
    assert left.status == "failed"
    assert left.error is not None
    assert left.error.message.startswith("result ")


def test_bad_values_change_nothing(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with any_manager.attempt(job.id) as attempt:
        before = any_manager.get(job.id)
        for bad in (
            lambda: attempt.update_progress(-1, 2),
            lambda: attempt.update_progress(1, 2, message="\0"),
            lambda: attempt.checkpoint("", 1),
            lambda: attempt.checkpoint("k", {1}),
            lambda: attempt.advance(1, 2, key="k", value=float("inf")),
            lambda: attempt.advance(1, -2, key="k", value=1),
            lambda: list(attempt.each([1], checkpoint="")),
            lambda: list(attempt.each([1], every=0)),
        ):
            with pytest.raises(InvalidValue):
                bad()
        assert any_manager.get(job.id) == before
        assert attempt.checkpoints == {}
    for options in (
        {"retry_on": "ValueError"},
        {"retry_on": [ValueError]},
        {"retry_on": (ValueError, 7)},
        {"backoff": timedelta(1)},
        {"heartbeat": 30},
        {"heartbeat": timedelta(0)},
        {"worker": ""},
    ):
        with pytest.raises(InvalidValue, match=f"^{next(iter(options))} "):
            any_manager.attempt(job.id, **options)


# --- losing it ---------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Any], Any]] = {
    "progress": lambda attempt: attempt.update_progress(1, 2),
    "checkpoint": lambda attempt: attempt.checkpoint("k", 1),
    "advance": lambda attempt: attempt.advance(1, 2, key="k", value=1),
    "heartbeat": lambda attempt: attempt.heartbeat(),
    "each": lambda attempt: list(attempt.each("abc")),
    "the end": lambda attempt: None,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("taken", TAKEN)
def test_what_is_lost_is_told_at_the_next_write(
    any_manager: ExecutionManager, taken: str, write: str
) -> None:
    job = any_manager.create("a", {"n": 1}, max_attempts=3)
    take, says = TAKEN[taken]
    with pytest.raises(AttemptLost, match=says) as caught, any_manager.attempt(job.id) as attempt:
        take(any_manager, job.id)
        after = None if taken == "deleted" else any_manager.get(job.id)
        WRITES[write](attempt)
        if write != "the end":
            pytest.fail("it went on")
    problem = caught.value
    assert (problem.execution_id, problem.attempt, problem.execution) == (job.id, 1, after)
    assert problem.code == "ATTEMPT_LOST"
    if after is not None:
        assert any_manager.get(job.id) == after
    assert attempt.checkpoints == {}


@pytest.mark.parametrize("taken", TAKEN)
def test_a_late_failure_is_not_the_successors(any_manager: ExecutionManager, taken: str) -> None:
    job = any_manager.create("a", max_attempts=3)
    with pytest.raises(Outage), any_manager.attempt(job.id, retry_on=Outage) as attempt:
        TAKEN[taken][0](any_manager, job.id)
        after = None if taken == "deleted" else any_manager.get(job.id)
        raise Outage
    if after is not None:
        assert any_manager.get(job.id) == after
    assert attempt.retry_after is None


def test_whoever_overhears_it_is_told_again(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with pytest.raises(AttemptLost), any_manager.attempt(job.id) as attempt:
        any_manager.cancel(job.id)
        for _ in range(2):
            with pytest.raises(AttemptLost):
                attempt.heartbeat()
        attempt.result = "never seen"


# --- each --------------------------------------------------------------------------------------


def crash_after(attempt: Any, items: Any, most: int, **options: Any) -> list[Any]:
    """Do that many items, and then die in the next one."""
    done: list[Any] = []
    for item in attempt.each(items, **options):
        if len(done) == most:
            raise Outage
        done.append(item)
    return done


class Sequence:
    """No list, no iterator: what Python iterates by `__getitem__`."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        if index >= self.n:
            raise IndexError
        return index


KINDS: dict[str, Callable[[int], Any]] = {
    "list": lambda n: list(range(n)),
    "range": range,
    "sequence": Sequence,
    "generator": lambda n: (k for k in range(n)),
    "dict": lambda n: dict.fromkeys(range(n)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 4, 100])
@pytest.mark.parametrize("crash", [0, 1, 4, 7, 11])
def test_each_goes_on_behind_the_checkpoint(
    any_manager: ExecutionManager, kind: str, every: int, crash: int
) -> None:
    job = any_manager.create("a", max_attempts=2)
    options: Any = {"checkpoint": "at", "every": every}
    with pytest.raises(Outage), any_manager.attempt(job.id, retry_on=Outage) as attempt:
        crash_after(attempt, KINDS[kind](12), crash, **options)
    covered = crash // every * every
    left = any_manager.get(job.id)
    assert left.checkpoints == ({"at": covered - 1} if covered else {})
    assert (left.progress.current if left.progress else 0) == covered
    with any_manager.attempt(job.id) as attempt:
        assert list(attempt.each(KINDS[kind](12), **options)) == list(range(covered, 12))
        assert attempt.checkpoints == {"at": 11}
    done = any_manager.get(job.id)
    assert done.checkpoints == {"at": 11}
    assert done.progress is not None
    assert (done.progress.current, done.progress.total, done.progress.percent) == (12, 12, 100)


def test_an_unknown_total_is_none_until_the_end(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with any_manager.attempt(job.id) as attempt:
        seen = []
        for _ in attempt.each(iter("abc"), every=1):
            progress = any_manager.get(job.id).progress
            seen.append(progress and (progress.current, progress.total, progress.percent))
    assert seen == [None, (1, 0, 0), (2, 0, 0)]
    progress = any_manager.get(job.id).progress
    assert progress is not None
    assert (progress.current, progress.total, progress.percent) == (3, 3, 100)


NOTHING: list[Callable[[], Any]] = [
    *(list, lambda: iter(()), lambda: [1, 2], lambda: iter([1, 2]), lambda: iter([1])),
    lambda: range(10**20)[:2],
]


@pytest.mark.parametrize("items", NOTHING)
def test_nothing_to_do_writes_nothing(
    any_manager: ExecutionManager, items: Callable[[], Any]
) -> None:
    job = any_manager.create("a")
    any_manager.checkpoint(job.id, "at", 1)
    with any_manager.attempt(job.id) as attempt:
        before = any_manager.get(job.id)
        assert list(attempt.each(items(), checkpoint="at")) == []
        assert any_manager.get(job.id) == before


def test_what_has_no_length_that_python_can_tell(any_manager: ExecutionManager) -> None:
    with any_manager.attempt(any_manager.create("a").id) as attempt:
        assert next(iter(attempt.each(range(10**20)))) == 0


def test_a_loop_that_is_left_early_has_not_done_the_last(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with any_manager.attempt(job.id) as attempt:
        for item in attempt.each("abcd"):
            if item == "c":
                break
        assert attempt.checkpoints == {"last_index": 1}
        # Nor does another loop take that checkpoint for its own, and skip what it has not done.
        with pytest.raises(InvalidValue, match="'last_index' belongs to another loop"):
            attempt.each("efgh")
        assert list(attempt.each("efgh", checkpoint="other")) == ["e", "f", "g", "h"]


@pytest.mark.parametrize("stored", ["seven", -1, True, None, 1.5, 2**63, [1]], ids=repr)
def test_a_checkpoint_that_is_no_index(any_manager: ExecutionManager, stored: Any) -> None:
    job = any_manager.create("a")
    any_manager.checkpoint(job.id, "last_index", stored)
    with (
        pytest.raises(InvalidValue, match=r"'last_index' holds .*, not an index"),
        any_manager.attempt(job.id) as attempt,
    ):
        attempt.each([1])


def test_an_asynchronous_iterable(database: Database) -> None:
    async def numbers() -> Any:
        for n in range(5):
            await asyncio.sleep(0)
            yield n

    async def run() -> None:
        async with connect_async(database.url) as manager:
            job = await manager.create("a", max_attempts=2)
            with pytest.raises(Outage):
                async with manager.attempt(job.id, retry_on=Outage) as attempt:
                    async for n in attempt.each(numbers()):
                        if n == 3:
                            raise Outage
            async with manager.attempt(job.id) as attempt:
                assert [n async for n in attempt.each(numbers())] == [3, 4]

    asyncio.run(run())


# --- in the caller's transaction ---------------------------------------------------------------


def test_writes_in_the_callers_transaction(database: Database) -> None:
    with connect(database.url) as manager:
        id = manager.create("a").id
        attempt = manager.attempt(manager.start(id)).__enter__()
        for end in ("rollback", "commit"):
            with database.engine.connect() as connection:
                inside = attempt.within(connection)
                inside.advance(1, 2, key="done", value=1)
                inside.heartbeat()
                assert inside.checkpoints == {"done": 1}
                getattr(connection, end)()
            assert manager.get(id).checkpoints == ({"done": 1} if end == "commit" else {})
            assert attempt.checkpoints == {}
        manager.cancel(id)
        with pytest.raises(AttemptLost), database.engine.begin() as connection:
            connection.execute(text("UPDATE executions SET metadata = '{\"x\": 1}'"))
            attempt.within(connection).checkpoint("done", 2)
        assert manager.get(id).metadata == {}


def test_a_whole_attempt_in_the_callers_transaction(database: Database) -> None:
    with connect(database.url) as manager:
        ids = [manager.create("a", max_attempts=2).id for _ in range(2)]
        with database.engine.connect() as connection:
            inside = manager.within(connection)
            with inside.attempt(ids[0]) as attempt:
                attempt.checkpoint("k", 1)
            connection.rollback()
            with inside.attempt(ids[1]) as attempt:
                attempt.checkpoint("k", 1)
            connection.commit()
            with pytest.raises(InvalidValue, match="heartbeat needs a connection of its own"):
                inside.attempt(ids[0], heartbeat=timedelta(seconds=1))
            view = manager.attempt(ids[0], heartbeat=timedelta(seconds=1)).within(connection)
            with pytest.raises(RuntimeError, match="An attempt has one block"), view:
                pytest.fail("it was entered")
        assert [manager.get(id).status for id in ids] == ["pending", "completed"]


def test_a_transaction_that_was_aborted_hides_no_error(
    postgres_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """On PostgreSQL; no error makes SQLite refuse what follows it."""
    with connect(postgres_database.url) as manager:
        id = manager.create("a").id
        with postgres_database.engine.connect() as connection:
            with (
                pytest.raises(Exception, match="division by zero"),
                manager.within(connection).attempt(id),
            ):
                connection.execute(text("SELECT 1 / 0"))
            connection.rollback()
        assert manager.get(id).status == "pending"
    assert "could not be recorded" in caplog.text


# --- when the database is down ------------------------------------------------------------------


class Unplugged:
    """A store whose database has gone."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.down = False

    def __getattr__(self, name: str) -> Any:
        if self.down and name != "shares_connection":
            raise OperationalError("UPDATE …", (), ConnectionError("the server has gone"))
        return getattr(self.store, name)


@pytest.fixture
def unplugged(any_manager: Any) -> Iterator[Unplugged]:
    target = getattr(any_manager, "target", any_manager)
    target._store = unplugged = Unplugged(target._store)
    yield unplugged
    unplugged.down = False


@pytest.mark.parametrize(
    ("error", "status", "code"), EXCEPTIONS[:10], ids=lambda v: type(v).__name__
)
def test_no_error_is_masked_by_a_database_that_is_down(
    any_manager: ExecutionManager,
    unplugged: Unplugged,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    status: str,
    code: str | None,
) -> None:
    job = any_manager.create("a", max_attempts=2)
    error.__context__ = None
    with pytest.raises(type(error)) as caught, any_manager.attempt(job.id):
        unplugged.down = True
        raise error
    assert caught.value is error
    assert error.__context__ is None
    unplugged.down = False
    assert any_manager.get(job.id).status == "running"
    (record,) = [each for each in caplog.records if each.name == "execution_core"]
    assert record.levelno == logging.WARNING
    assert record.exc_info is not None
    assert f"attempt 1 of execution {job.id} could not be recorded" in record.message
    error.__traceback__ = None


def test_an_end_that_cannot_be_recorded_is_told(
    any_manager: ExecutionManager, unplugged: Unplugged
) -> None:
    job = any_manager.create("a")
    with pytest.raises(OperationalError), any_manager.attempt(job.id):
        unplugged.down = True
    unplugged.down = False
    assert any_manager.get(job.id).status == "running"


# --- heartbeats --------------------------------------------------------------------------------


def until(condition: Callable[[], Any]) -> Any:
    limit = time.monotonic() + 30
    while not (answer := condition()):
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.01)
    return answer


def test_what_gives_a_sign_of_life(any_manager: ExecutionManager) -> None:
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


def test_a_heart_beats_in_a_thread(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with connect(database.url) as manager:
        job = manager.create("a", max_attempts=9)
        every = timedelta(milliseconds=5)
        for error in (Outage(), None):
            with (
                pytest.raises(Outage) if error else nullcontext(),
                manager.attempt(job.id, heartbeat=every, retry_on=Outage) as attempt,
            ):
                first = attempt.execution.heartbeat_at
                second = until(lambda: (b := manager.get(job.id).heartbeat_at) != first and b)  # noqa: B023
                until(lambda: manager.get(job.id).heartbeat_at not in (first, second))  # noqa: B023
                if error:
                    raise error
            assert not [t for t in threading.enumerate() if t.name.startswith("heartbeat-")]
        assert manager.get(job.id).status == "completed"
    assert caplog.text == ""


@pytest.mark.parametrize("error", [None, Outage()])
def test_nobody_waits_for_the_next_beat(manager: ExecutionManager, error: Outage | None) -> None:
    begun = time.monotonic()
    with (
        pytest.raises(Outage) if error else nullcontext(),
        manager.attempt(manager.create("a").id, heartbeat=timedelta(seconds=60)),
    ):
        if error:
            raise error
    assert time.monotonic() < begun + 30


def test_a_heart_stops_when_the_attempt_is_lost(database: Database) -> None:
    with connect(database.url) as manager:
        job = manager.create("a", max_attempts=9)
        every = timedelta(milliseconds=5)
        with pytest.raises(AttemptLost), manager.attempt(job.id, heartbeat=every):
            names = [t for t in threading.enumerate() if t.name == f"heartbeat-{job.id}"]
            assert len(names) == 1
            cancelled = manager.cancel(job.id)
            until(lambda: not names[0].is_alive())
            assert manager.get(job.id) == cancelled


def test_a_heart_goes_on_after_an_outage(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(database.url) as manager:
        manager._store = unplugged = Unplugged(manager._store)
        job = manager.create("a")
        with manager.attempt(job.id, heartbeat=timedelta(milliseconds=5)):
            unplugged.down = True
            until(lambda: "A heartbeat of attempt 1" in caplog.text)
            unplugged.down = False
            before = manager.get(job.id)
            until(lambda: manager.get(job.id) != before)


def hearts() -> list[Any]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("heartbeat-")]


def test_a_heart_beats_in_a_task(database: Database) -> None:
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
            assert not hearts()
            with pytest.raises(AttemptLost):
                async with manager.attempt(job.id, heartbeat=every):
                    cancelled = await manager.cancel(job.id)
                    while hearts():
                        await asyncio.sleep(0.01)
            assert await manager.get(job.id) == cancelled

    asyncio.run(asyncio.wait_for(run(), 30))


def test_no_heart_beats_on_a_shared_connection() -> None:
    """In-memory SQLite is one database to each thread, or one connection to them all."""
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


@pytest.mark.parametrize("error", [None, Outage()])
def test_an_interruption_of_the_record_is_recorded(
    database: Database, error: Outage | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a block, in no thread but the main one, writes its end."""
    with connect(database.url) as manager:
        job, update, hits = manager.create("a", max_attempts=2), manager._store.update, iter([True])

        def interrupted(*arguments: Any, **options: Any) -> Any:
            if next(hits, False):
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
manager = connect(sys.argv[1])
id = sys.argv[2]
with manager.attempt(id, heartbeat=timedelta(seconds=0.001)) as attempt:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    time.sleep(60)
"""


def test_ctrl_c_is_recorded(database: Database) -> None:
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


# --- asyncio: cancelled ------------------------------------------------------------------------


def test_a_cancelled_block_records_it(database: Database) -> None:
    async def work(manager: Any, id: str, entered: asyncio.Event) -> None:
        async with manager.attempt(id, heartbeat=timedelta(milliseconds=5)):
            entered.set()
            await asyncio.sleep(60)

    async def run() -> None:
        async with connect_async(database.url) as manager:
            for _ in range(20):
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


def test_a_cancellation_at_any_moment_leaves_nobody_running(database: Database) -> None:
    """At every step of the event loop: before, during and after each statement of a block."""

    async def work(manager: Any, id: str) -> None:
        async with manager.attempt(id) as attempt:
            await attempt.update_progress(1, 2)
            attempt.result = 7

    async def run() -> dict[str, int]:
        seen: dict[str, int] = {}
        async with connect_async(database.url) as manager:
            for steps in range(400):
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
            assert (await manager.create("the pool is whole")).status == "pending"
        return seen

    seen = asyncio.run(asyncio.wait_for(run(), 120))
    assert {"pending", "retrying", "completed"} <= seen.keys(), seen


def test_however_often_it_is_cancelled_a_block_first_records_it(database: Database) -> None:
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


def test_a_session_of_the_task_stays_with_the_task(database: Database) -> None:
    """SQLAlchemy's recipe for asyncio: a session for each task, found by asking which this is."""
    from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker

    async def run() -> None:
        engine = create_async_engine(database.url)
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(engine))
        job = await manager.create("a", max_attempts=2)
        scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        async with manager.within(scoped).attempt(job.id) as attempt:
            await attempt.update_progress(1, 2)
        assert len(scoped.registry.registry) == 1
        await scoped.commit()
        await scoped.remove()
        assert (await manager.get(job.id)).status == "completed"
        await engine.dispose()

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize("milliseconds", range(0, 40, 2))
def test_a_loop_that_ends_lets_a_block_record_it(database: Database, milliseconds: int) -> None:
    """`asyncio.run` cancels every task that it knows, and all at once."""

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


def test_a_block_over_one_connection_for_all_records_it() -> None:
    """In-memory SQLite under asyncio."""

    async def work(manager: Any, id: str) -> None:
        async with manager.attempt(id):
            await asyncio.sleep(0.001)

    async def run() -> set[str]:
        engine = configure_sqlite(create_async_engine("sqlite+aiosqlite://"))
        async with engine.begin() as connection:
            await connection.run_sync(migrate.upgrade)
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(engine))
        seen = set()
        for steps in range(60):
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


def test_a_timeout_around_a_block(database: Database) -> None:
    async def run() -> None:
        async with connect_async(database.url) as manager:
            job = await manager.create("a", max_attempts=2)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1), manager.attempt(job.id):
                    await asyncio.sleep(60)
            assert (await manager.get(job.id)).status == "retrying"

    asyncio.run(run())


# --- what goes over the wire -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_write_brings_no_payload_back(
    postgres_database: Database,
    mode: str,
    runner: asyncio.Runner,
    tell: Callable[[str], None],
) -> None:
    """On PostgreSQL, counted by a proxy; SQLite has no wire."""
    from ..support.proxy import proxied

    url = postgres_database.url
    with proxied(url) as proxy, open_manager(proxy.url, mode, runner) as manager:

        def count() -> int:
            return proxy.bytes_seen

        job = manager.create("a", "x" * 5_000_000)
        with manager.attempt(job.id) as attempt:
            for _ in range(8):  # prepared, from the sixth on
                attempt.advance(1, 2, key="k", value=1)
                attempt.heartbeat()
            writes: list[Callable[[], Any]] = [
                lambda: attempt.update_progress(1, 2, message="message"),
                lambda: attempt.checkpoint("k", [1]),
                lambda: attempt.advance(1, 2, key="k", value=1),
                attempt.heartbeat,
            ]
            for write in writes:
                before = count()
                write()
                assert 0 < count() - before < 1500
                tell(f"postgresql: {mode}, a write of a block: {count() - before} bytes both ways")
            before = count()
            assert manager.get(job.id).payload == attempt.execution.payload
            assert count() - before > 5_000_000  # the control
            before = count()
        assert 0 < count() - before < 1500


def test_the_history_stays_legal(database: Database) -> None:
    with connect(database.url) as manager:
        for taken, _ in TAKEN.values():
            job = manager.create("a", max_attempts=3)
            with pytest.raises(AttemptLost), manager.attempt(job.id):
                taken(manager, job.id)
    assert_legal(database)
