"""Sweeps: what is overdue or stalled is timed out, and nothing else."""

import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from execution_core import (
    Execution,
    ExecutionManager,
    InvalidStateTransition,
    InvalidValue,
    SqlExecutionStore,
    StaleAttempt,
    connect,
)
from execution_core.core import state_machine

from ..conftest import Database
from ..support.history import assert_legal
from ..support.processes import race
from ..support.sampling import in_whole

HOUR = timedelta(hours=1)


def ids(executions: list[Execution]) -> list[str]:
    return [each.id for each in executions]


@pytest.fixture
def clocked(database: Database) -> tuple[ExecutionManager, list[datetime]]:
    """Return a manager and its clock: a list with the current time."""
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    store = SqlExecutionStore(database.engine, clock=lambda: clock[0])
    return ExecutionManager(store), clock


def test_sweep_past_deadline_times_out(clocked: tuple[ExecutionManager, list[datetime]]) -> None:
    manager, clock = clocked
    limited, unlimited = manager.create("a", timeout=HOUR), manager.create("a")
    manager.create("never started", timeout=HOUR)
    manager.start(limited.id, worker="host")
    manager.start(unlimited.id)
    clock[0] += HOUR  # the deadline itself
    assert manager.sweep() == []
    clock[0] += timedelta(milliseconds=1)
    (swept,) = manager.sweep()
    assert swept == manager.get(limited.id)
    assert (swept.status, swept.completed_at) == ("timed_out", clock[0])
    assert swept.error == state_machine.TIMEOUT_ERROR
    assert manager.sweep() == []
    assert manager.get(unlimited.id).status == "running"


def test_sweep_without_heartbeat_times_out_as_stalled(
    clocked: tuple[ExecutionManager, list[datetime]],
) -> None:
    manager, clock = clocked
    silent, beating, limited = (
        manager.create("a", timeout=timeout) for timeout in (None, None, timedelta(seconds=5))
    )
    for job in (silent, beating, limited):
        manager.start(job.id)
    minute = timedelta(minutes=1)
    clock[0] += minute
    manager.heartbeat(beating.id)
    assert manager.sweep(stalled_after=minute, type="b") == []
    assert ids(manager.sweep(stalled_after=minute)) == [limited.id]  # past its deadline
    clock[0] += timedelta(milliseconds=1)
    (swept,) = manager.sweep(stalled_after=minute)
    assert swept.id == silent.id
    assert swept.error is not None
    assert swept.error.model_dump(exclude_none=True) == {
        "message": "Execution stalled: no heartbeat from its worker",
        "code": "stalled",
        "retryable": True,
    }
    overdue = manager.get(limited.id).error
    assert overdue is not None
    assert overdue.code == "timeout"
    clock[0] += minute
    assert ids(manager.sweep(stalled_after=minute)) == [beating.id]


def test_sweep_overdue_and_stalled_is_timeout(
    clocked: tuple[ExecutionManager, list[datetime]],
) -> None:
    manager, clock = clocked
    job = manager.create("a", timeout=HOUR)
    manager.start(job.id)
    clock[0] += 2 * HOUR
    (swept,) = manager.sweep(stalled_after=HOUR)
    assert swept.error == state_machine.TIMEOUT_ERROR


@pytest.mark.slow
def test_sweep_uses_database_clock(any_manager: ExecutionManager) -> None:
    jobs = [
        any_manager.create("a", max_attempts=2, timeout=timedelta(milliseconds=1)),
        any_manager.create("a"),
        any_manager.create("a", timeout=HOUR),
    ]
    for job in jobs:
        any_manager.start(job.id)
    time.sleep(0.51)
    assert ids(any_manager.sweep()) == [jobs[0].id]
    assert any_manager.retry(jobs[0].id).status == "retrying"
    any_manager.heartbeat(jobs[2].id)
    assert ids(any_manager.sweep(stalled_after=timedelta(seconds=0.5))) == [jobs[1].id]
    assert any_manager.get(jobs[2].id).status == "running"


def test_sweep_with_limit_takes_batches(any_manager: ExecutionManager) -> None:
    jobs = [any_manager.create(type, timeout=timedelta(milliseconds=1)) for type in "abaaa"]
    for job in jobs:
        any_manager.start(job.id)
    time.sleep(0.02)
    assert ids(any_manager.sweep(type="b")) == [jobs[1].id]
    batches = [ids(any_manager.sweep(limit=2)) for _ in range(3)]
    assert [len(batch) for batch in batches] == [2, 2, 0]
    assert {*batches[0], *batches[1]} == {job.id for job in jobs} - {jobs[1].id}
    for options in ({"stalled_after": 60}, {"stalled_after": timedelta(0)}, {"limit": 0}):
        with pytest.raises(InvalidValue, match=f"^{next(iter(options))} "):
            any_manager.sweep(**options)


@pytest.mark.slow
def test_sweep_after_manual_start_is_not_stalled_at_once(database: Database) -> None:
    """A manual UPDATE sets no heartbeat, or leaves that of the last attempt."""
    now = "statement_timestamp()"
    if database.name == "sqlite":
        now = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
    start = (
        f"UPDATE executions SET status = 'running', attempts = attempts + 1, started_at = {now},"
        " error = NULL WHERE status IN ('pending', 'retrying')"
    )
    stalled_after = timedelta(seconds=0.5)
    with connect(database.url) as manager:
        fresh, again = manager.create("a"), manager.create("a", max_attempts=2)
        manager.start(again.id)
        manager.fail(again.id, "no", retryable=True)
        time.sleep(0.55)
        assert database.run(start) == 2
        assert manager.sweep(stalled_after=stalled_after) == []
        manager.update_progress(fresh.id, 1, 2)
        time.sleep(0.55)
        assert ids(manager.sweep(stalled_after=stalled_after)) == [fresh.id, again.id]


def test_sweep_skips_rows_locked_by_others(postgres_database: Database) -> None:
    """On PostgreSQL: rows locked by a worker or by another sweep are skipped."""
    postgres_database.empty()
    with connect(postgres_database.url) as manager:
        jobs = [manager.create("a", timeout=timedelta(milliseconds=1)) for _ in range(3)]
        for job in jobs:
            manager.start(job.id)
        time.sleep(0.01)
        with postgres_database.engine.connect() as worker, postgres_database.engine.connect() as s:
            manager.within(worker).complete(jobs[0].id, 7)
            assert ids(manager.within(s).sweep(limit=1)) == [jobs[1].id]
            assert ids(manager.sweep()) == [jobs[2].id]
            worker.commit()
            s.rollback()
        assert manager.get(jobs[0].id).result == 7
        assert ids(manager.sweep()) == [jobs[1].id]


def test_sweep_and_retry_commit_together(database: Database) -> None:
    """In a transaction of the caller's, no crash separates a sweep from a chosen retry."""
    with connect(database.url) as manager:
        job = manager.create("a", max_attempts=2, timeout=timedelta(milliseconds=1))
        manager.start(job.id)
        time.sleep(0.01)
        for end in ("rollback", "commit"):
            with database.engine.connect() as connection:
                inside = manager.within(connection)
                for lost in inside.sweep():
                    inside.retry(lost.id)
                getattr(connection, end)()
            assert manager.get(job.id).status == ("running" if end == "rollback" else "retrying")
        assert ids(manager.claim()) == [job.id]


EXECUTIONS = in_whole(300, 100)


def sweep_or_work(number: int, url: str, job_ids: list[str]) -> Counter[str]:
    """Half of the processes sweep; the others complete, fail, and start again."""
    done: Counter[str] = Counter()
    with connect(url) as manager:
        if number % 2:
            for _ in range(40):
                for swept in manager.sweep(stalled_after=timedelta(milliseconds=5), limit=20):
                    done["swept"] += 1
                    assert swept.status == "timed_out"
                    if swept.attempts < swept.max_attempts:
                        manager.retry(swept.id)
            return done
        for n in range(40):
            for claimed in manager.claim(limit=5):
                try:
                    if (n + number) % 3:
                        manager.complete(claimed.id, number, attempt=claimed.attempts)
                        done["completed"] += 1
                    else:
                        time.sleep(0.006)
                        manager.heartbeat(claimed.id, attempt=claimed.attempts)
                except (InvalidStateTransition, StaleAttempt):
                    done["late"] += 1
    return done


@pytest.mark.slow
def test_sweep_beside_workers_loses_no_transition(database: Database) -> None:
    with connect(database.url) as manager:
        job_ids = [manager.create("race", max_attempts=5).id for _ in range(EXECUTIONS)]
    total: Counter[str] = sum(race(sweep_or_work, database.url, job_ids), Counter())
    assert_legal(database)
    rows = database.rows("SELECT to_status, count(*) AS n FROM execution_history GROUP BY 1")
    transitions = {row["to_status"]: row["n"] for row in rows}
    assert transitions.get("timed_out", 0) == total["swept"]
    assert transitions["completed"] == total["completed"]
    assert_silent_before_sweep(database, timedelta(milliseconds=5))


def assert_silent_before_sweep(database: Database, stalled_after: timedelta) -> None:
    """No attempt was swept as stalled before it had run for that long."""
    for row in database.rows("SELECT * FROM execution_attempts WHERE outcome = 'timed_out'"):
        assert row["duration_seconds"] > stalled_after.total_seconds() - 0.001, row
