"""Real processes over one database: invariants, never timings."""

import multiprocessing
import queue
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

PROCESSES = 8

# Processes that share nothing with this one, from a server that has done the imports already.
spawn = multiprocessing.get_context("forkserver")
spawn.set_forkserver_preload(["tests.tracking.test_races", "proof.chaos"])

LEGAL = {
    (None, "pending"),
    ("pending", "running"),
    ("pending", "cancelled"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "retrying"),
    ("running", "timed_out"),
    ("running", "cancelled"),
    ("failed", "retrying"),
    ("timed_out", "retrying"),
    ("retrying", "running"),
    ("retrying", "failed"),
}


def race(work: Callable[..., Any], *args: Any) -> list[Any]:
    """Run `work(number, *args)` in many processes that all start at once; return their answers."""
    barrier, answers = spawn.Barrier(PROCESSES), spawn.Queue()
    processes = [
        spawn.Process(target=run, args=(work, barrier, answers, n, *args)) for n in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    try:
        collected = [answers.get(timeout=120) for _ in processes]
    except queue.Empty:
        pytest.fail("a process gave no answer")
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    for answer in collected:
        if isinstance(answer, BaseException):
            raise answer
    return collected


def run(work: Callable[..., Any], barrier: Any, answers: Any, number: int, *args: Any) -> None:
    try:
        barrier.wait(60)
        answers.put(work(number, *args))
    except BaseException as error:
        answers.put(RuntimeError(f"{type(error).__name__}: {error}"))


def assert_legal(database: Database) -> None:
    """Every execution's history is a legal walk, without gaps, to where it stands."""
    for row in database.rows("SELECT id, status, attempts FROM executions"):
        history = database.rows(
            "SELECT * FROM execution_history WHERE execution_id = :id ORDER BY seq", id=row["id"]
        )
        assert [h["seq"] for h in history] == list(range(1, len(history) + 1))
        moves = [(h["from_status"], h["to_status"]) for h in history]
        assert set(moves) <= LEGAL
        assert [to for _, to in moves[:-1]] == [came_from for came_from, _ in moves[1:]]
        assert moves[-1][1] == row["status"]
        starts = [h["attempt"] for h in history if h["to_status"] == "running"]
        assert starts == list(range(1, row["attempts"] + 1))


def start_all(number: int, url: str, ids: list[str]) -> list[str]:
    won = []
    with connect(url) as manager:
        for id in ids:
            try:
                manager.start(id, worker=f"w{number}")
                won.append(id)
            except InvalidStateTransition:
                pass
    return won


def test_one_winner_for_each_start(database: Database) -> None:
    with connect(database.url) as manager:
        ids = [manager.create("race").id for _ in range(100)]
    winners = race(start_all, database.url, ids)
    assert Counter(id for won in winners for id in won) == Counter(ids)
    for number, won in enumerate_workers(winners, database):
        assert {row["worker"] for row in won} == {f"w{number}"}
    assert_legal(database)


def enumerate_workers(winners: list[list[str]], database: Database) -> list[tuple[int, Any]]:
    rows = {str(r["id"]): r for r in database.rows("SELECT id, worker, attempts FROM executions")}
    assert {r["attempts"] for r in rows.values()} == {1}
    return [(int(rows[won[0]]["worker"][1:]), [rows[id] for id in won]) for won in winners if won]


def create_all(number: int, url: str, keys: list[str]) -> list[str]:
    with connect(url) as manager:
        # Half of them in the other order, half with another payload for the odd keys.
        order = keys if number % 2 else keys[::-1]
        ids = {key: manager.create("once", {"k": key}, idempotency_key=key).id for key in order}
        with pytest.raises(IdempotencyConflict):
            manager.create("once", {"k": "other"}, idempotency_key=keys[0])
    return [ids[key] for key in keys]


def test_one_row_of_many_creates(database: Database) -> None:
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


def test_no_checkpoint_is_lost(database: Database) -> None:
    with connect(database.url) as manager:
        id = manager.create("race").id
        race(checkpoint_all, database.url, id)
        assert manager.get(id).checkpoints == {
            f'{number}."{n}"': {"n": n, "text": "ü\\"}
            for number in range(PROCESSES)
            for n in range(25)
        }


BY_HAND = """
UPDATE executions SET status = 'cancelled', completed_at = {now}, updated_at = {now}, error = NULL
 WHERE id = :id AND status IN ('pending', 'running')
"""


def live_wildly(number: int, url: str, ids: list[str]) -> Counter[str]:
    """Move everything everywhere, through the library and, in one process, by hand in SQL."""
    done: Counter[str] = Counter()
    engine = create_sync_engine(url)
    now = (
        "now()" if engine.dialect.name == "postgresql" else "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
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
                    done["moved"] += 1
                except ExecutionProblem as problem:
                    done[problem.code] += 1
                if number == 0 and turn == 5:
                    with engine.begin() as connection:
                        connection.execute(text(BY_HAND.format(now=now)), {"id": id})
    engine.dispose()
    return done


def test_whatever_happens_the_history_is_a_legal_walk(database: Database) -> None:
    with connect(database.url) as manager:
        ids = [manager.create("race", max_attempts=4).id for _ in range(20)]
    total: Counter[str] = sum(race(live_wildly, database.url, ids), Counter())
    assert total["moved"] > 20
    assert_legal(database)


def test_the_control_finds_a_walk_that_is_not_legal(database: Database) -> None:
    with connect(database.url) as manager:
        id = manager.create("race").id
        manager.cancel(id)
    database.run("UPDATE executions SET status = 'pending', completed_at = NULL")
    with pytest.raises(AssertionError):
        assert_legal(database)


def hold_a_key(number: int, url: str, barrier: Any, end: str) -> str:
    """One process creates and keeps its transaction open; the others create the same meanwhile."""
    engine = create_sync_engine(url)
    with connect(url) as manager, engine.connect() as connection:
        if number == 0:
            id = manager.within(connection).create("a", 1, idempotency_key="k").id
            barrier.wait(60)
            # The others are on their way into the lock; what follows is right whoever is first.
            getattr(connection, end)()
        else:
            barrier.wait(60)
            id = manager.create("a", 1, idempotency_key="k").id
    engine.dispose()
    return id


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_create_waits_for_an_open_one(database: Database, end: str) -> None:
    first, *others = sorted_by_number(
        race(numbered, hold_a_key, database.url, spawn.Barrier(PROCESSES), end)
    )
    (row,) = database.rows("SELECT id FROM executions")
    assert set(others) == {str(row["id"])}
    assert (first in others) == (end == "commit")


def numbered(number: int, work: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    return number, work(number, *args)


def sorted_by_number(answers: list[tuple[int, Any]]) -> list[Any]:
    return [answer for _, answer in sorted(answers)]


class Vanishing:
    """A store in which what holds the key is gone whenever it is looked for."""

    def create(self, creation: Any) -> None: ...

    def find_by_idempotency_key(self, key: str) -> None: ...

    def find_by_id(self, id: str) -> Execution | None: ...


def test_a_create_does_not_try_for_ever() -> None:
    manager = ExecutionManager(Vanishing())  # type: ignore[arg-type]
    with pytest.raises(ConcurrentUpdate, match=r"Cannot create execution .*: try again"):
        manager.create("a", idempotency_key="k")
