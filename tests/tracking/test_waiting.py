"""Waits end when the execution, or each of its children, has ended; they share their calls."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from statistics import median
from typing import Any

import pytest
from sqlalchemy import StaticPool, create_engine
from sqlalchemy.exc import OperationalError

from execution_core import (
    Execution,
    ExecutionManager,
    ExecutionNotFound,
    ExecutionStatus,
    InvalidValue,
    SqlExecutionStore,
    configure_sqlite,
    connect,
    migrate,
)
from execution_core.core.state_machine import FINISHED, LIVE
from execution_core.core.validation import new_id
from execution_core.sql.statements import queries
from execution_core.tracking import waiting

from ..conftest import Database
from ..support.query_plans import explain, insert_rows
from ..support.waiting import wait_until

SOON = timedelta(milliseconds=200)
LONG = timedelta(seconds=60)

ENDS: dict[str, Callable[[ExecutionManager, str], Any]] = {
    "completed": lambda m, id: m.complete(id, {"n": 1}),
    "failed": lambda m, id: m.fail(id, "no"),
    "timed_out": lambda m, id: m.timeout(id),
    "cancelled": lambda m, id: m.cancel(id),
}


def real_store(manager: Any) -> Any:
    return getattr(manager, "target", manager)._store


def record_calls(manager: Any) -> list[int]:
    """Return a list to which each shared call adds the number of ids that it asks for."""
    store, calls = real_store(manager), list[int]()
    find_unfinished = store.find_unfinished

    def recorded(ids: list[str], **options: Any) -> Any:
        calls.append(len(ids))
        return find_unfinished(ids, **options)

    store.find_unfinished = recorded
    return calls


def gather(manager: Any, waits: list[Callable[[Any], Any]]) -> list[Any]:
    """Make calls at once, in threads or in tasks; return what each returns or raises."""
    if hasattr(manager, "runner"):

        async def run() -> list[Any]:
            calls = (wait(manager.target) for wait in waits)
            return await asyncio.gather(*calls, return_exceptions=True)

        return list(manager.runner.run(run()))

    def call(wait: Callable[[Any], Any]) -> Any:
        try:
            return wait(manager)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(waits)) as threads:
        return list(threads.map(call, waits))


class Later:
    """Do something in another thread, as another process does, after the waits have begun."""

    def __init__(self, do: Callable[[], Any], calls: list[int], count: int = 1) -> None:
        def run() -> None:
            wait_until(lambda: len(calls) >= count)
            do()

        self._thread = threading.Thread(target=run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._thread.join()


def test_wait_for_finished_execution_returns_it(any_manager: ExecutionManager) -> None:
    for status, end in ENDS.items():
        job = any_manager.start(any_manager.create("a", {"p": 1}).id)
        ended = end(any_manager, job.id)
        assert any_manager.wait(job.id) == ended
        assert any_manager.wait(job.id.upper(), timeout=timedelta(0)).status == status


def test_wait_for_live_execution_raises_timeout(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a", max_attempts=2)
    any_manager.fail(any_manager.start(job.id).id, "again", retryable=True)
    parent = any_manager.create("a").id
    any_manager.create("a", parent_id=parent)
    for timeout in (timedelta(0), SOON):
        begun, n = time.monotonic(), f"{timeout.total_seconds():g}"
        with pytest.raises(TimeoutError) as caught:
            any_manager.wait(job.id, timeout=timeout)
        expected = f"Execution {job.id} is not finished after {n} s: its status is retrying."
        assert str(caught.value) == expected
        with pytest.raises(TimeoutError, match=f"{parent} has unfinished children after {n} s"):
            any_manager.wait_children(parent, timeout=timeout)
        assert time.monotonic() - begun >= 2 * timeout.total_seconds()


def test_wait_for_unknown_execution_raises_not_found(any_manager: ExecutionManager) -> None:
    for id in (new_id(), "x", None):
        for wait in (any_manager.wait, any_manager.wait_children):
            with pytest.raises(ExecutionNotFound):
                wait(id)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [5, timedelta(-1), "1"])
def test_wait_invalid_timeout_refused(manager: ExecutionManager, timeout: Any) -> None:
    for wait in (manager.wait, manager.wait_children):
        with pytest.raises(InvalidValue, match="timeout must be "):
            wait(new_id(), timeout=timeout)


def test_wait_inside_transaction_refused(database: Database) -> None:
    with connect(database.url) as manager, database.engine.begin() as connection:
        inside = manager.within(connection)
        for wait in (inside.wait, inside.wait_children):
            with pytest.raises(InvalidValue, match="must be outside of your transaction"):
                wait(new_id())


@pytest.mark.parametrize("end", [*ENDS, "deleted"])
def test_wait_ends_when_another_process_ends_execution(
    manager: ExecutionManager, database: Database, end: str
) -> None:
    job, calls = manager.start(manager.create("a").id), record_calls(manager)
    with connect(database.url) as other:
        ways = ENDS | {"deleted": ExecutionManager.delete}
        with Later(lambda: ways[end](other, job.id), calls, 3):
            (found,) = gather(manager, [lambda m: m.wait(job.id, timeout=LONG)])
    if end == "deleted":
        assert isinstance(found, ExecutionNotFound)
    else:
        assert found == manager.get(job.id)
        assert found.status == end


def test_wait_continues_when_retry_is_faster(manager: ExecutionManager, database: Database) -> None:
    """A failure is seen, and then the execution is live again before it is read."""
    job, store, seen = manager.create("a", max_attempts=2), real_store(manager), list[int]()
    find_unfinished = store.find_unfinished
    with connect(database.url) as other:

        def raced(ids: list[str], **options: Any) -> Any:
            seen.append(1)
            if len(seen) > 1:
                return find_unfinished(ids, **options)
            other.fail(other.start(job.id).id, "no")
            answer = find_unfinished(ids, **options)
            return retried(answer) if isinstance(answer, Coroutine) else retry(answer)

        async def retried(answer: Any) -> Any:
            return retry(await answer)

        def retry(answer: Any) -> Any:
            other.retry(job.id)
            return answer

        store.find_unfinished = raced
        with Later(lambda: other.cancel(job.id), seen, 4):
            assert manager.wait(job.id, timeout=LONG).status == "cancelled"


def test_wait_children_ends_when_no_child_is_live(
    manager: ExecutionManager, database: Database
) -> None:
    parent = manager.create("parent")
    assert manager.wait_children(parent.id).total == 0
    children = [manager.create("a", parent_id=parent.id, max_attempts=2) for _ in range(3)]
    grandchild = manager.create("a", parent_id=children[0].id)
    calls = record_calls(manager)

    with connect(database.url) as other:

        def end() -> None:
            other.cancel(children[0].id)
            other.fail(other.start(children[1].id).id, "again", retryable=True)
            other.complete(other.start(children[2].id).id)
            begun = len(calls)
            wait_until(lambda: len(calls) > begun + 1)
            other.complete(other.start(children[1].id).id)

        with Later(end, calls):
            found = manager.wait_children(parent.id, timeout=LONG)
    assert (found.total, found.finished) == (3, 3)
    assert manager.get(children[1].id).status == "completed"
    assert manager.get(grandchild.id).status == "pending"


def test_waits_of_a_process_share_calls(manager: ExecutionManager, database: Database) -> None:
    """Each gets its own execution, and one call asks for all of them."""
    jobs = [manager.create("a", {"n": n}) for n in range(30)]
    parent = manager.create("parent")
    manager.create("child", parent_id=parent.id)
    calls = record_calls(manager)
    waits: list[Callable[[Any], Any]] = [
        lambda m, id=job.id: m.wait(id, timeout=LONG)  # type: ignore[misc]
        for job in jobs
    ]
    waits += 10 * [lambda m: m.wait_children(parent.id, timeout=LONG)]
    with connect(database.url) as other:

        def end() -> None:
            for each in other.list():
                time.sleep(0.01)
                other.cancel(each.id)

        with Later(end, calls, 12):
            found = gather(manager, waits)
    assert [each.payload for each in found[:30]] == [{"n": n} for n in range(30)]
    assert {each.status for each in found[:30]} == {"cancelled"}
    assert {each.total for each in found[30:]} == {1}
    assert max(calls) == 30
    assert len(calls) < 100, calls  # alone, each would make twelve


def test_waits_beyond_the_limit_of_a_call_need_another(
    manager: ExecutionManager, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MAX_BATCH", 2)
    jobs, calls = [manager.create("a") for _ in range(5)], record_calls(manager)
    waits: Any = [lambda m, id=job.id: m.wait(id, timeout=LONG) for job in jobs]
    with (
        connect(database.url) as other,
        Later(lambda: [other.cancel(each.id) for each in jobs], calls, 6),
    ):
        found = gather(manager, waits)
    assert [each.id for each in found] == [each.id for each in jobs]
    assert max(calls) == 2


def test_waits_continue_when_the_one_that_asks_leaves(
    manager: ExecutionManager, database: Database
) -> None:
    """By its timeout, and because its own execution ends."""
    jobs, calls = [manager.create("a") for _ in range(6)], record_calls(manager)
    timeouts = [timedelta(milliseconds=150 * n) for n in (1, 2, 3)] + 3 * [LONG]
    waits: list[Callable[[Any], Any]] = [
        lambda m, id=job.id, timeout=timeout: m.wait(id, timeout=timeout)  # type: ignore[misc]
        for job, timeout in zip(jobs, timeouts, strict=True)
    ]
    with connect(database.url) as other:

        def end() -> None:
            time.sleep(0.6)
            for each in jobs[3:]:
                other.cancel(each.id)
                time.sleep(0.05)

        begun = time.monotonic()
        with Later(end, calls):
            found = gather(manager, waits)
        assert time.monotonic() < begun + 4  # nobody has to be found silent
    assert [type(each) for each in found] == 3 * [TimeoutError] + 3 * [Execution]


def test_wait_error_of_store_is_raised_by_all_that_share_the_call(
    manager: ExecutionManager,
) -> None:
    """Nothing is retried silently: the next wait is a new call."""
    jobs, store, calls = [manager.create("a") for _ in range(4)], real_store(manager), list[int]()
    find_unfinished = store.find_unfinished

    def broken(ids: list[str], **options: Any) -> Any:
        calls.append(len(ids))
        if len(ids) == 4:
            raise OperationalError("SELECT …", (), ConnectionError("the server has gone"))
        return find_unfinished(ids, **options)

    store.find_unfinished = broken
    waits: Any = [lambda m, id=job.id: m.wait(id, timeout=LONG) for job in jobs]
    found = gather(manager, waits)
    assert [type(each) for each in found] == 4 * [OperationalError]
    manager.cancel(jobs[0].id)
    assert manager.wait(jobs[0].id).status == "cancelled"


@pytest.mark.parametrize("pool", [{}, {"poolclass": StaticPool}])
def test_wait_in_memory_sqlite_ends(pool: dict[str, Any]) -> None:
    engine = configure_sqlite(create_engine("sqlite://", **pool))
    migrate.upgrade(engine)
    manager = ExecutionManager(SqlExecutionStore(engine))
    job = manager.create("a")
    with pytest.raises(TimeoutError):
        manager.wait(job.id, timeout=SOON)
    manager.cancel(job.id)
    assert manager.wait(job.id) == manager.get(job.id)


def test_wait_cancelled_task_does_not_disturb_others(
    database: Database, runner: asyncio.Runner
) -> None:
    from execution_core import connect_async

    async def run() -> None:
        async with connect_async(database.url) as manager:
            calls = record_calls(manager)
            jobs = [await manager.create("a") for _ in range(8)]
            tasks = [asyncio.create_task(manager.wait(job.id)) for job in jobs]
            for n in range(6):  # the first one asks first, then another one
                begun = len(calls)
                while len(calls) < begun + 2:
                    await asyncio.sleep(0.001 * n)
                tasks[n].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await tasks[n]
            for job in jobs[6:]:
                await manager.cancel(job.id)
            ended = await asyncio.wait_for(asyncio.gather(*tasks[6:]), 4)
            assert [each.id for each in ended] == [each.id for each in jobs[6:]]

    runner.run(run())


SIGNALLED = """
import os, signal, sys, threading, time
from datetime import timedelta
from execution_core import connect

url, how = sys.argv[1:]
LONG = timedelta(seconds=30)
manager = connect(url)
jobs = [manager.create("a") for _ in range(4)]
found = []
begun = threading.Event()
find_unfinished = manager._store.find_unfinished

def recorded(ids, **options):
    if len(ids) > 3:
        begun.set()
    return find_unfinished(ids, **options)

manager._store.find_unfinished = recorded

def raising(number, frame):
    raise KeyboardInterrupt

def waiting(number, frame):  # a wait inside of a wait
    threading.Thread(target=lambda: (time.sleep(0.3), manager.cancel(jobs[1].id))).start()
    found.append(manager.wait(jobs[1].id, timeout=LONG).status)
    manager.cancel(jobs[0].id)

signal.signal(signal.SIGUSR1, waiting if how == "nest" else raising)
threads = [
    threading.Thread(target=lambda id=job.id: found.append(manager.wait(id, timeout=LONG).status))
    for job in jobs[2:]
]

def interrupt():
    begun.wait()
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGUSR1)

threads.append(threading.Thread(target=lambda: manager.wait(jobs[1].id, timeout=LONG)))
# The main thread is the first one that waits: it asks for all.
threading.Timer(0.2, lambda: [each.start() for each in threads]).start()
threading.Thread(target=interrupt).start()
start = time.monotonic()
try:
    manager.wait(jobs[0].id, timeout=LONG)
except KeyboardInterrupt:
    found.append("interrupted")
if how == "fork":
    if not (child := os.fork()):
        with connect(url) as own:
            own.cancel(jobs[0].id)
        print("child", manager.wait(jobs[0].id, timeout=LONG).status, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
for job in jobs:
    if manager.get(job.id).status == "pending":
        manager.cancel(job.id)
for each in threads:
    each.join()
print(*found, flush=True)
print("in time" if time.monotonic() < start + 12 else "late")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raise", "interrupted cancelled cancelled\nin time\n"),
        ("nest", "cancelled cancelled cancelled\nin time\n"),
        ("fork", "child cancelled\ninterrupted cancelled cancelled\nin time\n"),
    ],
)
def test_wait_of_other_threads_survives_a_signal(
    database: Database, how: str, expected: str
) -> None:
    """A handler raises in the thread that asks for all, waits in it, or the process forks."""
    ran = subprocess.run(
        [sys.executable, "-c", SIGNALLED, database.url, how],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr) == (expected, "")


def test_wait_plans_look_up_ids_one_by_one(database: Database) -> None:
    """With any statistics, and with many live executions and children."""
    is_postgres = database.name == "postgresql"
    insert_rows(database, "completed", 4_000)
    database.run("ANALYZE executions")
    insert_rows(database, "running", 4_000)
    found = database.rows("SELECT CAST(id AS text) AS id, status FROM executions")
    done, live = (
        [row["id"] for row in found if row["status"] == status]
        for status in ("completed", "running")
    )
    id = "CAST(:id AS uuid)" if is_postgres else ":id"
    of = f"UPDATE executions SET parent_id = {id} WHERE status = :status"
    database.run(f"{of} AND id <> {id}", status="completed", id=done[0])
    database.run(of, status="running", id=done[1])
    ids = [*done[:50], *live[:50]]
    with connect(database.url) as manager:
        for analyze in (False, True):
            if analyze:
                database.run("ANALYZE executions")
            for children, expected in ((False, {*live[:50]}), (True, {done[1]})):
                plan, rows = explain(database, queries.find_unfinished(ids, children=children))
                assert "Seq Scan" not in plan
                assert "SCAN executions" not in plan
                assert "(status=?)" not in plan, plan
                assert rows <= len(ids) + 1, plan
                assert not children or "ix_executions_parent_id_status_id" in plan, plan
                store: Any = manager._store
                assert store.find_unfinished(ids, children=children) == expected


def test_wait_live_statuses_are_neighbours() -> None:
    """The statement for children looks them up as a range."""
    assert not {*FINISHED} & {each for each in ExecutionStatus if min(LIVE) <= each <= max(LIVE)}


@pytest.mark.exhaustive
@pytest.mark.parametrize(("mode", "count"), [("sync", 200), ("async", 1_000)])
def test_waits_of_many_cost_few_calls(
    manager: ExecutionManager, database: Database, count: int, tell: Callable[[str], None]
) -> None:
    insert_rows(database, "running", count)
    ids = [each.id for each in manager.list(limit=10_000)]
    calls, ends, delays = list[float](), dict[str, float](), list[float]()
    store = real_store(manager)
    find_unfinished = store.find_unfinished

    def recorded(ids: list[str], **options: Any) -> Any:
        calls.append(time.monotonic())
        return find_unfinished(ids, **options)

    store.find_unfinished = recorded

    def end() -> None:
        time.sleep(6)
        with connect(database.url) as other:
            for id in ids[:100]:
                other.complete(id)
                ends[id] = time.monotonic()
                time.sleep(0.03)
            for id in ids[100:]:
                other.complete(id)

    def returned(execution: Execution) -> None:
        if execution.id in ends:
            delays.append(time.monotonic() - ends[execution.id])

    async def wait_async(m: Any, id: str) -> None:
        returned(await m.wait(id))

    def wait(m: Any, id: str) -> Any:
        return wait_async(m, id) if hasattr(manager, "runner") else returned(m.wait(id))

    begun = time.monotonic()
    with Later(end, [1]):
        waits: Any = [lambda m, id=id: wait(m, id) for id in ids]
        assert gather(manager, waits) == [None] * count
    early = sum(each < begun + 3 for each in calls)
    steady = sum(begun + 3 <= each < begun + 6 for each in calls) / 3
    assert steady < 4
    tell(
        f"{database.name}: {count} that wait make {early} calls in 3 s, then {steady:.1f} a second;"
        f" they return {median(delays) * 1000:.0f} ms after the end (median)"
    )
