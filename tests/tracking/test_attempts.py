"""Attempts as with-blocks: what they record, and when they are lost."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from execution_core import (
    AttemptLost,
    Backoff,
    ExecutionManager,
    ExecutionNotFound,
    InvalidStateTransition,
    InvalidValue,
    connect,
)

from ..conftest import Database, open_manager
from ..support.attempts import LOSSES, Outage, UnreachableStore
from ..support.history import assert_legal


def test_attempt_block_starts_and_completes(any_manager: ExecutionManager) -> None:
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


def test_attempt_without_result_completes_with_none(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with any_manager.attempt(job.id):
        pass
    assert (any_manager.get(job.id).status, any_manager.get(job.id).result) == ("completed", None)


def test_attempt_when_start_is_refused_is_not_entered(any_manager: ExecutionManager) -> None:
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


def test_attempt_of_claimed_execution_is_not_started_again(any_manager: ExecutionManager) -> None:
    any_manager.create("a", max_attempts=2)
    (claimed,) = any_manager.claim(worker="host")
    with any_manager.attempt(claimed) as attempt:
        assert attempt.number == 1
        assert attempt.execution is claimed
    done = any_manager.get(claimed.id)
    assert (done.status, done.attempts, done.worker) == ("completed", 1, "host")


@pytest.mark.parametrize("loss", LOSSES)
def test_attempt_lost_since_claim_is_not_entered(any_manager: ExecutionManager, loss: str) -> None:
    any_manager.create("a", max_attempts=3)
    (claimed,) = any_manager.claim()
    LOSSES[loss][0](any_manager, claimed.id)
    after = None if loss == "deleted" else any_manager.get(claimed.id)
    with pytest.raises(AttemptLost), any_manager.attempt(claimed):
        pytest.fail("it was entered")
    if after is not None:
        assert any_manager.get(claimed.id) == after


def test_attempt_of_claimed_execution_refuses_worker(any_manager: ExecutionManager) -> None:
    any_manager.create("a")
    (claimed,) = any_manager.claim()
    with pytest.raises(InvalidValue, match="worker is already set"):
        any_manager.attempt(claimed, worker="other")


def test_attempt_of_pending_execution_object_is_refused(any_manager: ExecutionManager) -> None:
    """`create` with a key may return an execution that runs elsewhere."""
    job = any_manager.create("a")
    with pytest.raises(
        InvalidValue,
        match="this execution is pending",
    ):
        any_manager.attempt(job)


def test_attempt_entered_twice_raises(any_manager: ExecutionManager) -> None:
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


class Worse(Outage):
    pass


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class FalseClass(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return AttemptLost


EXCEPTIONS: list[tuple[BaseException, str, str | None]] = [
    # the exception, the status, and the code; None: the name of its class
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
    (AttemptLost("another execution", 1, None), "failed", None),
    (ExceptionGroup("all of it", [Outage(), ExceptionGroup("too", [Worse()])]), "retrying", None),
    (ExceptionGroup("part of it", [Outage(), ValueError()]), "failed", None),
    (FalseClass(), "failed", None),
    (ValueError("x" * 3_000_000), "failed", None),
]


def class_name(kind: type) -> str:
    """Return what tells two classes of one name apart; Python's own need no module."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    own = kind.__module__ == "execution_core.core.errors"
    return f"{'execution_core' if own else kind.__module__}.{kind.__qualname__}"


@pytest.mark.parametrize(
    ("error", "status", "code"), EXCEPTIONS, ids=lambda value: type(value).__name__
)
def test_attempt_exception_is_recorded_and_propagates(
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
    assert left.error.code == (code or class_name(type(error)))
    assert left.error.retryable == (status == "retrying")
    assert left.error.stack is not None
    assert "in test_attempt_exception" in left.error.stack or len(left.error.stack) == 100_000
    error.__traceback__ = error.__cause__ = None


def test_attempt_last_with_retryable_error_fails(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with pytest.raises(Outage), any_manager.attempt(job.id, retry_on=Outage) as attempt:
        raise Outage
    assert any_manager.get(job.id).status == "failed"
    assert attempt.retry_after is None


def test_attempt_backoff_delays_retry(any_manager: ExecutionManager) -> None:
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


def test_attempt_interrupted_retries_without_backoff(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a", max_attempts=2)
    backoff = Backoff(timedelta(minutes=1))
    with (
        pytest.raises(SystemExit),
        any_manager.attempt(job.id, retry_on=OSError, backoff=backoff) as attempt,
    ):
        raise SystemExit
    found = any_manager.get(job.id)
    assert found.due_at == found.updated_at  # due at once
    assert attempt.retry_after == timedelta(0)


class Untidy(dict[str, int]):
    def values(self) -> Any:
        raise AttributeError("result of mine")


@pytest.mark.parametrize("result", [{1, 2}, float("nan"), "\0", b"bytes", Untidy(a=1)], ids=repr)
def test_attempt_unstorable_result_fails(any_manager: ExecutionManager, result: Any) -> None:
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


def test_attempt_invalid_arguments_change_nothing(any_manager: ExecutionManager) -> None:
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


WRITES: dict[str, Callable[[Any], Any]] = {
    "progress": lambda attempt: attempt.update_progress(1, 2),
    "checkpoint": lambda attempt: attempt.checkpoint("k", 1),
    "advance": lambda attempt: attempt.advance(1, 2, key="k", value=1),
    "heartbeat": lambda attempt: attempt.heartbeat(),
    "each": lambda attempt: list(attempt.each("abc")),
    "completion": lambda attempt: None,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("loss", LOSSES)
def test_attempt_write_after_loss_raises_attempt_lost(
    any_manager: ExecutionManager, loss: str, write: str
) -> None:
    job = any_manager.create("a", {"n": 1}, max_attempts=3)
    lose, message = LOSSES[loss]
    with (
        pytest.raises(AttemptLost, match=message) as caught,
        any_manager.attempt(job.id) as attempt,
    ):
        lose(any_manager, job.id)
        after = None if loss == "deleted" else any_manager.get(job.id)
        WRITES[write](attempt)
        if write != "completion":
            pytest.fail("it went on")
    problem = caught.value
    assert (problem.execution_id, problem.attempt, problem.execution) == (job.id, 1, after)
    assert problem.code == "ATTEMPT_LOST"
    if after is not None:
        assert any_manager.get(job.id) == after
    assert attempt.checkpoints == {}


@pytest.mark.parametrize("loss", LOSSES)
def test_attempt_failure_after_loss_changes_nothing(
    any_manager: ExecutionManager, loss: str
) -> None:
    job = any_manager.create("a", max_attempts=3)
    with pytest.raises(Outage), any_manager.attempt(job.id, retry_on=Outage) as attempt:
        LOSSES[loss][0](any_manager, job.id)
        after = None if loss == "deleted" else any_manager.get(job.id)
        raise Outage
    if after is not None:
        assert any_manager.get(job.id) == after
    assert attempt.retry_after is None


def test_attempt_lost_swallowed_is_raised_again(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a")
    with pytest.raises(AttemptLost), any_manager.attempt(job.id) as attempt:
        any_manager.cancel(job.id)
        for _ in range(2):
            with pytest.raises(AttemptLost):
                attempt.heartbeat()
        attempt.result = "not stored"


@pytest.fixture
def unreachable(any_manager: Any) -> Iterator[UnreachableStore]:
    target = getattr(any_manager, "target", any_manager)
    target._store = unreachable = UnreachableStore(target._store)
    yield unreachable
    unreachable.down = False


@pytest.mark.parametrize(
    ("error", "status", "code"), EXCEPTIONS[:10], ids=lambda v: type(v).__name__
)
def test_attempt_exception_with_database_down_propagates(
    any_manager: ExecutionManager,
    unreachable: UnreachableStore,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    status: str,
    code: str | None,
) -> None:
    job = any_manager.create("a", max_attempts=2)
    error.__context__ = None
    with pytest.raises(type(error)) as caught, any_manager.attempt(job.id):
        unreachable.down = True
        raise error
    assert caught.value is error
    assert error.__context__ is None
    unreachable.down = False
    assert any_manager.get(job.id).status == "running"
    (record,) = [each for each in caplog.records if each.name == "execution_core"]
    assert record.levelno == logging.WARNING
    assert record.exc_info is not None
    assert f"attempt 1 of execution {job.id} could not be recorded" in record.message
    error.__traceback__ = None


def test_attempt_completion_with_database_down_raises(
    any_manager: ExecutionManager, unreachable: UnreachableStore
) -> None:
    job = any_manager.create("a")
    with pytest.raises(OperationalError), any_manager.attempt(job.id):
        unreachable.down = True
    unreachable.down = False
    assert any_manager.get(job.id).status == "running"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_attempt_writes_transfer_no_payload(
    postgres_database: Database,
    mode: str,
    runner: asyncio.Runner,
    tell: Callable[[str], None],
) -> None:
    """On PostgreSQL: a proxy counts the bytes. SQLite has no network."""
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
            assert count() - before > 5_000_000  # the control: a read transfers the payload
            before = count()
        assert 0 < count() - before < 1500


def test_attempt_losses_leave_valid_history(database: Database) -> None:
    with connect(database.url) as manager:
        for lose, _ in LOSSES.values():
            job = manager.create("a", max_attempts=3)
            with pytest.raises(AttemptLost), manager.attempt(job.id):
                lose(manager, job.id)
    assert_legal(database)
