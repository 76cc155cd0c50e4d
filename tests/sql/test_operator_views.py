"""Views for operators: what needs attention, and how attempts ended."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from execution_core import ExecutionFailure, ExecutionManager, SqlExecutionStore

from ..conftest import Database

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


class Past:
    """A manager whose calls happened some time ago."""

    def __init__(self, database: Database) -> None:
        self._ago = timedelta(0)
        store = SqlExecutionStore(database.engine, clock=lambda: datetime.now(UTC) - self._ago)
        self._manager = ExecutionManager(store)

    def ago(self, time: timedelta) -> ExecutionManager:
        self._ago = time
        return self._manager


@pytest.fixture
def past(database: Database) -> Past:
    return Past(database)


def attention(database: Database) -> dict[str, tuple[Any, ...]]:
    """Return reason and action of the executions that the view has, by type."""
    rows = database.rows("SELECT * FROM executions_needing_attention")
    assert len({row["execution_id"] for row in rows}) == len(rows)
    assert all(row["since_seconds"] > 0 for row in rows)
    return {row["type"]: (row["reason"], row["action"]) for row in rows}


def failed(past: Past, type: str, ago: timedelta, *, retryable: bool = False) -> str:
    manager = past.ago(ago)
    id = manager.start(manager.create(type).id).id
    return manager.fail(id, ExecutionFailure(message="no", retryable=retryable)).id


def test_attention_view_names_failures_of_a_week(database: Database, past: Past) -> None:
    failed(past, "final", HOUR)
    failed(past, "retryable", 6 * 24 * HOUR, retryable=True)
    failed(past, "old", 8 * 24 * HOUR)
    replayed = failed(past, "replayed", HOUR)
    manager = past.ago(MINUTE)
    manager.replay(replayed)
    manager.retry(failed(past, "retried", HOUR), extra_attempts=1)
    late = past.ago(2 * MINUTE).create("late").id
    past.ago(MINUTE).start(late)
    past.ago(MINUTE).timeout(late)
    past.ago(HOUR).cancel(past.ago(HOUR).create("cancelled").id)
    found = attention(database)
    # The retry was made an hour ago by its clock, and nothing of its type runs.
    assert found.pop("retried") == ("unclaimed", "inspect")
    assert found == {
        "final": ("failed", "inspect"),
        "retryable": ("failed", "retry"),
        "late": ("timed_out", "retry"),
    }


def test_attention_view_names_running_ones_that_are_late(database: Database, past: Past) -> None:
    def start(type: str, ago: timedelta, timeout: timedelta | None = None) -> str:
        manager = past.ago(ago)
        return manager.start(manager.create(type, timeout=timeout).id).id

    start("overdue", 10 * MINUTE, MINUTE)
    start("just overdue", 2 * MINUTE, MINUTE)
    start("without heartbeats", 24 * HOUR)
    silent, alive = start("silent", HOUR), start("alive", HOUR)
    past.ago(20 * MINUTE).heartbeat(silent)
    past.ago(MINUTE).heartbeat(alive)
    both = start("silent and overdue", HOUR, MINUTE)
    past.ago(20 * MINUTE).heartbeat(both)
    assert attention(database) == {
        "overdue": ("overdue", "sweep"),
        "silent": ("silent", "inspect"),
        "silent and overdue": ("overdue", "sweep"),
    }


def test_attention_view_names_what_nobody_claims(database: Database, past: Past) -> None:
    past.ago(20 * MINUTE).create("unclaimed")
    past.ago(10 * MINUTE).create("soon")
    past.ago(24 * HOUR).create("delayed", start_after=25 * HOUR)
    for type, ago in (("busy", 20 * MINUTE), ("backlog", 2 * HOUR)):
        past.ago(ago).create(type)
        running = past.ago(timedelta(0)).create(type).id
        past.ago(timedelta(0)).start(running)
    retrying = past.ago(HOUR).create("retrying", max_attempts=2).id
    past.ago(HOUR).start(retrying)
    past.ago(HOUR).fail(retrying, "no", retryable=True)
    assert attention(database) == {
        "unclaimed": ("unclaimed", "inspect"),
        "backlog": ("waiting", "wait"),
        "retrying": ("unclaimed", "inspect"),
    }


def test_attempts_view_names_released_and_swept_attempts(
    database: Database, manager: ExecutionManager
) -> None:
    id = manager.create("a", max_attempts=4, timeout=timedelta(milliseconds=1)).id
    manager.start(id)
    manager.release(id)
    manager.start(id)
    while not manager.sweep(retry=True):
        pass
    manager.start(id)
    manager.fail(id, "no", retryable=True)
    manager.start(id)
    manager.cancel(id)
    rows = database.rows("SELECT outcome, error_code FROM execution_attempts ORDER BY attempt")
    assert [(row["outcome"], row["error_code"]) for row in rows] == [
        ("released", None),
        ("timed_out", "timeout"),
        ("failed", None),
        ("cancelled", None),
    ]
