"""Claims: what is due, the oldest first, and nothing twice."""

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from execution_core import (
    Backoff,
    Execution,
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
    connect,
)
from execution_core.sql.driver.engine import create_sync_engine

from ..conftest import Clock, Database
from ..support.history import assert_legal
from ..support.processes import PROCESSES, race

HOUR = timedelta(hours=1)


def ids(executions: list[Execution]) -> list[str]:
    return [each.id for each in executions]


def test_claim_takes_oldest_first(any_manager: ExecutionManager) -> None:
    jobs = [any_manager.create("a", {"n": n}, max_attempts=2) for n in range(5)]
    assert any_manager.claim(limit=2, worker="host") == [any_manager.get(j.id) for j in jobs[:2]]
    (third,) = any_manager.claim()
    assert third == any_manager.get(jobs[2].id)
    assert (third.status, third.attempts, third.worker) == ("running", 1, None)
    assert third.payload == {"n": 2}
    any_manager.fail(jobs[0].id, "no", retryable=True)
    assert ids(any_manager.claim(limit=9)) == [jobs[0].id, jobs[3].id, jobs[4].id]
    assert any_manager.get(jobs[0].id).attempts == 2
    assert any_manager.get(jobs[0].id).error is None
    assert any_manager.claim(limit=9) == []


def test_claim_of_type_takes_only_that_type(any_manager: ExecutionManager) -> None:
    jobs = [any_manager.create(type) for type in "abab"]
    assert ids(any_manager.claim("b", limit=9)) == [jobs[1].id, jobs[3].id]
    assert any_manager.claim("b") == []
    assert any_manager.claim("c") == []
    assert ids(any_manager.claim(limit=9)) == [jobs[0].id, jobs[2].id]


def test_claim_before_due_time_takes_nothing(
    clocked_manager: ExecutionManager, clock: Clock
) -> None:
    soon, later = timedelta(seconds=1), HOUR
    delayed = clocked_manager.create("a", start_after=soon)
    assert delayed.due_at == delayed.created_at + soon
    far = clocked_manager.create("a", start_after=later)
    now = clocked_manager.create("a", start_after=timedelta(0))
    failed = clocked_manager.create("a", max_attempts=2)
    clocked_manager.start(failed.id)
    waiting = clocked_manager.fail(failed.id, "no", retryable=True, retry_after=soon)
    assert waiting.due_at == waiting.updated_at + soon
    assert ids(clocked_manager.claim(limit=9)) == [now.id]
    assert clocked_manager.claim(limit=9) == []
    clock.time += soon
    claimed = clocked_manager.claim(limit=9)
    assert ids(claimed) == [delayed.id, failed.id]
    assert [each.due_at for each in claimed] == [None, None]
    assert clocked_manager.claim(limit=9) == []
    assert clocked_manager.get(far.id).status == "pending"


def test_claim_orders_by_due_time(clocked_manager: ExecutionManager, clock: Clock) -> None:
    delayed = clocked_manager.create("a", start_after=timedelta(seconds=1))
    clock.time += timedelta(milliseconds=20)
    at_once = clocked_manager.create("a")
    clock.time += timedelta(seconds=1)
    latest = clocked_manager.create("a")
    order = [each.id for _ in range(3) for each in clocked_manager.claim()]
    assert order == [at_once.id, delayed.id, latest.id]


def test_start_before_due_time_is_allowed(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a", max_attempts=3, start_after=HOUR)
    assert any_manager.start(job.id).due_at is None
    any_manager.fail(job.id, "no", retryable=True, retry_after=HOUR)
    assert any_manager.claim() == []
    started = any_manager.start(job.id)
    assert (started.status, started.due_at) == ("running", None)


def test_due_time_is_null_unless_waiting(any_manager: ExecutionManager) -> None:
    m = any_manager
    waiting = m.create("a")
    assert waiting.due_at == waiting.created_at
    cancelled = m.create("a", start_after=HOUR)
    assert m.cancel(cancelled.id, "why").due_at is None
    assert m.cancel(m.create("a", start_after=HOUR).id).due_at is None
    given_up = m.create("a", max_attempts=2)
    m.start(given_up.id)
    m.fail(given_up.id, "no", retryable=True, retry_after=HOUR)
    assert m.retry(given_up.id, retry_after=HOUR).due_at is not None
    assert m.fail(given_up.id, "no").due_at is None
    again = m.retry(given_up.id)
    assert (again.status, again.due_at) == ("retrying", again.updated_at)
    m.start(given_up.id)
    last = m.fail(given_up.id, "no", retryable=True, retry_after=HOUR)
    assert (last.status, last.due_at) == ("failed", None)
    final = m.create("a", max_attempts=2)
    m.start(final.id)
    assert m.fail(final.id, "no").due_at is None


@pytest.mark.parametrize(
    "options",
    [{"limit": 0}, {"limit": 10_001}, {"limit": True}, {"type": ""}, {"type": 7}, {"worker": ""}],
    ids=str,
)
def test_claim_invalid_arguments_are_refused(
    any_manager: ExecutionManager, options: dict[str, Any]
) -> None:
    any_manager.create("a")
    with pytest.raises(InvalidValue, match=f"^{next(iter(options))} "):
        any_manager.claim(**options)
    assert any_manager.claim() != []


def test_delay_invalid_is_refused(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a", max_attempts=2)
    any_manager.start(job.id)
    for delay in (5, timedelta(seconds=-1), timedelta(days=36_501), "5s", datetime.now(UTC)):
        with pytest.raises(InvalidValue, match=r"^retry_after must be "):
            any_manager.fail(job.id, "no", retryable=True, retry_after=delay)  # type: ignore[arg-type]
        with pytest.raises(InvalidValue, match=r"^start_after must be "):
            any_manager.create("a", start_after=delay)  # type: ignore[arg-type]
    assert any_manager.get(job.id).status == "running"
    assert len(any_manager.list()) == 1


def test_backoff_grows_to_maximum() -> None:
    backoff = Backoff(timedelta(seconds=1), factor=2, maximum=timedelta(seconds=10), jitter=0)
    seconds = [backoff.delay(n).total_seconds() for n in (1, 2, 3, 4, 5, 1000, 2**31 - 1)]
    assert seconds == [1, 2, 4, 8, 10, 10, 10]
    jittered = Backoff(timedelta(seconds=8), maximum=timedelta(seconds=8), jitter=0.5)
    delays = [jittered.delay(3) for _ in range(1000)]
    assert timedelta(seconds=4) <= min(delays) < timedelta(seconds=4.5)
    assert timedelta(seconds=7.5) < max(delays) <= timedelta(seconds=8)
    second, nan = timedelta(seconds=1), float("nan")
    for options in (
        {"initial": 5},
        {"initial": timedelta(0)},
        {"initial": second, "maximum": timedelta(milliseconds=1)},
        {"initial": second, "factor": 0.5},
        {"initial": second, "factor": nan},
        {"initial": second, "jitter": 1.1},
        {"initial": second, "jitter": nan},
        {"initial": second, "jitter": "some"},
    ):
        with pytest.raises(InvalidValue, match=f"^{list(options)[-1]} must "):
            Backoff(**options)
    with pytest.raises(InvalidValue, match=r"^attempt must be"):
        backoff.delay(0)


def test_claim_skips_rows_locked_by_others(postgres_database: Database) -> None:
    """On PostgreSQL: SQLite has one writer at a time."""
    postgres_database.empty()
    impatient = create_sync_engine(postgres_database.url + "?options=-clock_timeout%3D1")
    manager = ExecutionManager(SqlExecutionStore(impatient))
    jobs = [manager.create("a") for _ in range(6)]
    with postgres_database.engine.connect() as one, postgres_database.engine.connect() as two:
        assert ids(manager.within(one).claim(limit=2)) == ids(jobs[:2])
        manager.within(two).checkpoint(jobs[2].id, "k", 1)
        assert ids(manager.claim(limit=2)) == ids(jobs[3:5])
        with pytest.raises(Exception, match="lock timeout"):
            manager.start(jobs[0].id)  # the control: a start has to wait
        one.rollback()
        two.commit()
    assert ids(manager.claim(limit=9)) == [*ids(jobs[:3]), jobs[5].id]
    # An uncommitted child locks its parent's key only: the parent can be claimed.
    parent = manager.create("a")
    with postgres_database.engine.connect() as one:
        manager.within(one).create("b", parent_id=parent.id)
        assert ids(manager.claim()) == [parent.id]
        one.rollback()
    impatient.dispose()


CLAIMED = 200


def claim_all(number: int, url: str, share: int) -> tuple[int, list[str], float]:
    claimed: list[str] = []
    with connect(url) as manager:
        begun = time.perf_counter()
        while found := manager.claim("race", limit=share, worker=f"w{number}"):
            assert len(found) <= share
            claimed += ids(found)
        return number, claimed, time.perf_counter() - begun


@pytest.mark.slow
@pytest.mark.parametrize("share", [1, 7])
def test_claim_by_eight_processes_takes_each_once(
    database: Database, share: int, tell: Callable[[str], None]
) -> None:
    """The times of eight processes and of one are reported."""
    took = {}
    for processes in (1, PROCESSES):
        with connect(database.url) as manager:
            made = {manager.create("race").id for _ in range(CLAIMED)}
            manager.create("other")
        answers = (
            [claim_all(0, database.url, share)]
            if processes == 1
            else race(claim_all, database.url, share)
        )
        counted = Counter(id for _, claimed, _ in answers for id in claimed)
        assert counted == Counter(made)
        rows = database.rows("SELECT id, worker, attempts FROM executions WHERE type = 'race'")
        workers = {str(row["id"]): (row["worker"], row["attempts"]) for row in rows}
        for number, claimed, _ in answers:
            assert {workers[id] for id in claimed} <= {(f"w{number}", 1)}
        took[processes] = max(seconds for *_, seconds in answers)
    assert_legal(database)
    tell(
        f"{database.name}: {CLAIMED} claimed {share} at a time,"
        f" by one process {took[1]:.2f} s, by {PROCESSES} processes {took[PROCESSES]:.2f} s"
    )
