"""Processes that use one database at the same time. The tests check invariants, never times."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from execution_core import (
    ConcurrentUpdate,
    Execution,
    ExecutionManager,
    ExecutionProblem,
    IdempotencyConflict,
    InvalidStateTransition,
    connect,
)
from execution_core.sql.driver.engine import create_sync_engine

from ..conftest import Database
from ..support.history import assert_legal
from ..support.processes import PROCESSES, race, spawn


def start_all(number: int, url: str, ids: list[str]) -> list[str]:
    started = []
    with connect(url) as manager:
        for id in ids:
            try:
                manager.start(id, worker=f"w{number}")
                started.append(id)
            except InvalidStateTransition:
                pass
    return started


@pytest.mark.slow
def test_start_by_eight_processes_succeeds_once(database: Database) -> None:
    with connect(database.url) as manager:
        ids = [manager.create("race").id for _ in range(100)]
    winners = race(start_all, database.url, ids)
    assert Counter(id for started in winners for id in started) == Counter(ids)
    for number, started in enumerate_workers(winners, database):
        assert {row["worker"] for row in started} == {f"w{number}"}
    assert_legal(database)


def enumerate_workers(winners: list[list[str]], database: Database) -> list[tuple[int, Any]]:
    rows = {str(r["id"]): r for r in database.rows("SELECT id, worker, attempts FROM executions")}
    assert {r["attempts"] for r in rows.values()} == {1}
    return [
        (int(rows[started[0]]["worker"][1:]), [rows[id] for id in started])
        for started in winners
        if started
    ]


def create_all(number: int, url: str, keys: list[str]) -> list[str]:
    with connect(url) as manager:
        # Half of the processes create in the opposite order.
        order = keys if number % 2 else keys[::-1]
        ids = {key: manager.create("once", {"k": key}, idempotency_key=key).id for key in order}
        with pytest.raises(IdempotencyConflict):
            manager.create("once", {"k": "other"}, idempotency_key=keys[0])
    return [ids[key] for key in keys]


@pytest.mark.slow
def test_create_by_eight_processes_inserts_once(database: Database) -> None:
    keys = [f"key-{n}" for n in range(50)]
    answers = race(create_all, database.url, keys)
    assert all(answer == answers[0] for answer in answers)
    assert len(database.rows("SELECT id FROM executions")) == 50
    assert_legal(database)


def checkpoint_all(number: int, url: str, id: str) -> int:
    with connect(url) as manager:
        for n in range(25):
            manager.checkpoint(id, f'{number}."{n}"', {"n": n, "text": "ü\\"})
            manager.update_progress(id, n, 25, message=f"{number}")
    return number


@pytest.mark.slow
def test_checkpoint_by_eight_processes_keeps_all(database: Database) -> None:
    with connect(database.url) as manager:
        id = manager.create("race").id
        race(checkpoint_all, database.url, id)
        assert manager.get(id).checkpoints == {
            f'{number}."{n}"': {"n": n, "text": "ü\\"}
            for number in range(PROCESSES)
            for n in range(25)
        }


MANUAL_CANCEL = """
UPDATE executions SET status = 'cancelled', completed_at = {now}, updated_at = {now}, error = NULL
 WHERE id = :id AND status IN ('pending', 'running')
"""


def run_random_verbs(number: int, url: str, ids: list[str]) -> Counter[str]:
    """Call all verbs on all executions; one process also cancels with a manual UPDATE."""
    done: Counter[str] = Counter()
    engine = create_sync_engine(url)
    now = (
        "now()"
        if engine.dialect.name == "postgresql"
        else "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
    )
    with connect(url) as manager:

        def attempt(id: str) -> None:
            mine = manager.start(id).attempts
            manager.update_progress(id, 1, 2, attempt=mine)
            if number % 3 == 0:
                manager.fail(id, "no", retryable=True, attempt=mine)
            elif number % 3 == 1:
                manager.timeout(id, attempt=mine)
            else:
                manager.complete(id, number, attempt=mine)

        verbs: list[Callable[[str], Any]] = [
            attempt,
            manager.retry,
            lambda id: manager.fail(id, "given up"),
            attempt,
            lambda id: manager.checkpoint(id, str(number), number),
        ]
        for turn in range(6):
            for n, id in enumerate(ids):
                try:
                    verbs[(turn + n + number) % len(verbs)](id)
                    done["changed"] += 1
                except ExecutionProblem as problem:
                    done[problem.code] += 1
                if number == 0 and turn == 5:
                    with engine.begin() as connection:
                        connection.execute(text(MANUAL_CANCEL.format(now=now)), {"id": id})
    engine.dispose()
    return done


@pytest.mark.slow
def test_history_under_random_verbs_is_valid(database: Database) -> None:
    with connect(database.url) as manager:
        ids = [manager.create("race", max_attempts=4).id for _ in range(20)]
    total: Counter[str] = sum(race(run_random_verbs, database.url, ids), Counter())
    assert total["changed"] > 20
    assert_legal(database)


def test_history_control_detects_invalid_transition(database: Database) -> None:
    with connect(database.url) as manager:
        id = manager.create("race").id
        manager.cancel(id)
    database.run(
        "UPDATE executions SET status = 'pending', completed_at = NULL, due_at = created_at"
    )
    with pytest.raises(AssertionError):
        assert_legal(database)


def create_concurrently(number: int, url: str, barrier: Any, end: str) -> str:
    """Process 0 creates and keeps its transaction open; the others create the same meanwhile."""
    engine = create_sync_engine(url)
    with connect(url) as manager, engine.connect() as connection:
        if number == 0:
            id = manager.within(connection).create("a", 1, idempotency_key="k").id
            barrier.wait(60)
            # The others now run into the lock; the result is the same in every order.
            getattr(connection, end)()
        else:
            barrier.wait(60)
            id = manager.create("a", 1, idempotency_key="k").id
    engine.dispose()
    return id


@pytest.mark.slow
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_create_waits_for_open_transaction(database: Database, end: str) -> None:
    first, *others = sorted_by_number(
        race(numbered, create_concurrently, database.url, spawn.Barrier(PROCESSES), end)
    )
    (row,) = database.rows("SELECT id FROM executions")
    assert set(others) == {str(row["id"])}
    assert (first in others) == (end == "commit")


def numbered(number: int, work: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    return number, work(number, *args)


def sorted_by_number(answers: list[tuple[int, Any]]) -> list[Any]:
    return [answer for _, answer in sorted(answers)]


class VanishingKeyStore:
    """A store in which the execution with the key is deleted before every lookup."""

    def create(self, creation: Any) -> None: ...

    def find_by_idempotency_key(self, key: str) -> None: ...

    def find_by_id(self, id: str) -> Execution | None: ...


def test_create_with_vanishing_key_gives_up() -> None:
    manager = ExecutionManager(VanishingKeyStore())  # type: ignore[arg-type]
    with pytest.raises(ConcurrentUpdate, match=r"Cannot create execution .*: try again"):
        manager.create("a", idempotency_key="k")
