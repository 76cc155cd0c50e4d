"""Workers: each execution once, never too many, stops, kills, outages, failures."""

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    Backoff,
    Execution,
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
    configure_sqlite,
    connect,
    connect_async,
)
from execution_core.worker import AsyncWorker, Worker

from ..conftest import Database
from ..support.history import assert_legal
from ..support.proxy import proxied
from ..support.waiting import wait_until
from ..support.workers import PATIENCE, connect_worker, new_worker, running

ROOT = Path(__file__).parents[2]
MINUTE = timedelta(minutes=1)
SWEEPS = {
    "heartbeat": timedelta(milliseconds=100),
    "stalled_after": timedelta(milliseconds=500),
}
SOON = Backoff(timedelta(milliseconds=50), jitter=0)


@pytest.fixture
def client(database: Database) -> Iterator[ExecutionManager]:
    with connect(database.url) as client:
        yield client


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "execution_core")
    return caplog


def messages(logged: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [each.getMessage() for each in logged.records if each.levelno == level]


def wait_for(client: ExecutionManager, **counts: int) -> None:
    """Wait until so many executions have each status."""
    wait_until(
        lambda: all(client.count(status=each) == n for each, n in counts.items()),
        lambda: [(each.type, each.status, each.error) for each in client.list()],
    )


def most_running(database: Database) -> dict[str, int]:
    """Return how many executions each worker had at most at the same time."""
    now, most = Counter[str](), Counter[str]()
    for row in database.rows(
        "SELECT e.worker, to_status FROM execution_history h JOIN executions e"
        " ON e.id = h.execution_id WHERE to_status <> 'pending'"
        " ORDER BY occurred_at, CASE to_status WHEN 'running' THEN 1 ELSE 0 END"
    ):
        now[row["worker"]] += 1 if row["to_status"] == "running" else -1
        most[row["worker"]] = max(most[row["worker"]], now[row["worker"]])
    return dict(most)


def test_worker_two_workers_complete_each_execution_once(
    database: Database, mode: str, client: ExecutionManager
) -> None:
    calls, lock = Counter[str](), threading.Lock()

    def work(attempt: Any) -> dict[str, Any]:
        with lock:
            calls[attempt.execution.id] += 1
        return {"n": attempt.execution.payload["n"]}

    jobs = [client.create("ab"[n % 2], {"n": n}) for n in range(200)]
    other = client.create("other")
    functions = {"a": work, "b": work}
    one, two = (
        connect_worker(database.url, mode, functions, concurrency=n, worker=f"w{n}") for n in (3, 4)
    )
    with running(one), running(two):
        wait_for(client, completed=200)
    assert calls == Counter({job.id: 1 for job in jobs})
    done = client.list(status="completed", limit=200)
    assert {(each.attempts, each.payload == each.result) for each in done} == {(1, True)}
    assert client.get(other.id).status == "pending"
    most = most_running(database)
    assert most["w3"] <= 3, most
    assert most["w4"] <= 4, most
    assert max(most.values()) > 1
    assert_legal(database)


def test_worker_several_types_are_claimed_in_turn(
    database: Database, mode: str, client: ExecutionManager
) -> None:
    """A type with many due executions does not keep another type waiting."""
    types: list[str] = []

    def work(attempt: Any) -> None:
        types.append(attempt.execution.type)

    for type in "aaaaaaaabb":
        client.create(type)
    functions = {"a": work, "b": work}
    with running(connect_worker(database.url, mode, functions, concurrency=1)):
        wait_for(client, completed=10)
    assert sorted(types[:4]) == ["a", "a", "b", "b"]


# --- failures ---------------------------------------------------------------------------------


def test_worker_failing_function_is_retried_with_backoff_then_failed(
    database: Database, mode: str, client: ExecutionManager, logged: pytest.LogCaptureFixture
) -> None:
    began: dict[int, float] = {}

    def work(attempt: Any) -> None:
        began[attempt.number] = time.monotonic()
        raise OSError(f"no paper in printer {attempt.number}")

    job = client.create("print", max_attempts=3)
    fatal = client.create("fatal", max_attempts=3)

    def fail(attempt: Any) -> None:
        raise LookupError("not retryable")

    functions = {"print": work, "fatal": fail}
    options: dict[str, Any] = {"retry_on": OSError, "backoff": SOON}
    with running(connect_worker(database.url, mode, functions, **options)):
        wait_for(client, failed=2)
    failed = client.get(job.id)
    assert failed.attempts == 3
    assert failed.error is not None
    assert failed.error.message == "no paper in printer 3"
    assert client.get(fatal.id).attempts == 1
    assert began[2] - began[1] >= 0.05
    assert began[3] - began[2] >= 0.1
    warnings = messages(logged, logging.WARNING)
    expected = [
        f"Attempt {n} of execution {job.id} (print) failed: OSError: no paper in printer {n}"
        for n in (1, 2, 3)
    ]
    assert [each for each in warnings if job.id in each] == expected
    assert len(warnings) == 4


@pytest.mark.parametrize(
    "error", [SystemExit(3), asyncio.CancelledError(), GeneratorExit()], ids=repr
)
def test_worker_function_that_raises_base_exception_is_retried_and_worker_continues(
    database: Database, mode: str, client: ExecutionManager, error: BaseException
) -> None:
    def work(attempt: Any) -> str:
        if attempt.number == 1:
            raise error
        return "done"

    async def work_async(attempt: Any) -> str:
        return work(attempt)

    job = client.create("a", max_attempts=2)
    functions = {"a": work if mode == "sync" else work_async}
    with running(connect_worker(database.url, mode, functions)):
        wait_for(client, completed=1)
    (first, _) = database.rows(
        "SELECT outcome, error ->> 'code' AS code FROM execution_attempts"
        " WHERE execution_id = :id ORDER BY attempt",
        id=job.id,
    )
    assert (first["outcome"], first["code"]) == ("failed", "interrupted")


def test_worker_function_that_raises_keyboard_interrupt_is_retried_and_worker_stops(
    database: Database, mode: str, client: ExecutionManager
) -> None:
    def work(attempt: Any) -> None:
        raise KeyboardInterrupt

    async def work_async(attempt: Any) -> None:
        work(attempt)

    job = client.create("a", max_attempts=10_000)
    functions = {"a": work if mode == "sync" else work_async}
    with running(connect_worker(database.url, mode, functions)) as ended:
        ended.result(PATIENCE)
    assert client.get(job.id).status == "retrying"


def test_worker_function_that_cannot_begin_is_released_and_claimed_again(
    database: Database,
    mode: str,
    client: ExecutionManager,
    monkeypatch: pytest.MonkeyPatch,
    logged: pytest.LogCaptureFixture,
) -> None:
    job = client.create("a")
    worker = connect_worker(database.url, mode, {"a": lambda _: None}, concurrency=1)

    def refuse(execution: Execution) -> None:
        worker._running[execution.id, execution.attempts] = None
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(worker, "_begin", refuse)
    with running(worker):
        wait_for(client, completed=1)
    assert client.get(job.id).attempts == 2
    (warning,) = messages(logged, logging.WARNING)
    assert warning.endswith("RuntimeError: can't start new thread")


def test_worker_result_that_is_not_json_fails_the_attempt(
    database: Database, mode: str, client: ExecutionManager
) -> None:
    client.create("a")
    with running(connect_worker(database.url, mode, {"a": lambda _: object()})):
        wait_for(client, failed=1)


def test_worker_cancelled_execution_is_not_an_error(
    database: Database, mode: str, client: ExecutionManager, logged: pytest.LogCaptureFixture
) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def work(attempt: Any) -> None:
        if attempt.execution.payload is None:
            begun.set()
            assert cancelled.wait(PATIENCE)

    job = client.create("a")
    with running(connect_worker(database.url, mode, {"a": work}, concurrency=1)):
        assert begun.wait(PATIENCE)
        client.cancel(job.id, "not wanted")
        cancelled.set()
        client.create("a", "next")
        wait_for(client, completed=1)
    assert client.get(job.id).status == "cancelled"
    assert messages(logged, logging.WARNING) == []
    (lost,) = messages(logged, logging.INFO)
    assert job.id in lost


# --- stops ------------------------------------------------------------------------------------


def test_worker_stop_within_function_lets_running_functions_finish(
    database: Database, mode: str, client: ExecutionManager
) -> None:
    def work(attempt: Any) -> None:
        worker.stop()
        time.sleep(0.1)

    for _ in range(9):
        client.create("a")
    worker = connect_worker(database.url, mode, {"a": work}, concurrency=2)
    with running(worker) as ended:
        ended.result(PATIENCE)
    done = client.count(status="completed")
    assert 1 <= done <= 2
    assert client.count(status=["pending", "retrying"]) == 9 - done


def test_worker_stop_after_claim_releases_what_has_not_begun(
    database: Database, mode: str, client: ExecutionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is real; the stop arrives between it and the first attempt."""
    worker = connect_worker(database.url, mode, {"a": lambda _: None}, concurrency=5)
    claim = worker._manager.claim

    def claim_and_stop(*args: Any, **options: Any) -> Any:
        claimed = claim(*args, **options)
        worker.stop()
        return claimed

    monkeypatch.setattr(worker._manager, "claim", claim_and_stop)
    jobs = [client.create("a") for _ in range(3)]
    with running(worker) as ended:
        ended.result(PATIENCE)
    for job in jobs:
        released = client.get(job.id)
        assert (released.status, released.attempts, released.max_attempts) == ("retrying", 1, 2)


def test_worker_stop_before_run_claims_nothing(
    database: Database, mode: str, client: ExecutionManager
) -> None:
    job = client.create("a")
    worker = connect_worker(database.url, mode, {"a": lambda _: None})
    worker.stop()
    with running(worker) as ended:
        ended.result(PATIENCE)
    assert client.get(job.id).status == "pending"
    with pytest.raises(RuntimeError, match="runs once"), running(worker):
        pass


def test_worker_grace_time_over_async_is_interrupted_sync_continues(
    database: Database, mode: str, client: ExecutionManager, logged: pytest.LogCaptureFixture
) -> None:
    begun, ends = threading.Event(), threading.Event()

    def work(attempt: Any) -> None:
        begun.set()
        assert ends.wait(PATIENCE)

    async def work_async(attempt: Any) -> None:
        begun.set()
        await asyncio.sleep(PATIENCE)

    job = client.create("a", max_attempts=2)
    functions = {"a": work if mode == "sync" else work_async}
    worker = connect_worker(database.url, mode, functions, grace=timedelta(milliseconds=50))
    with running(worker) as ended:
        assert begun.wait(PATIENCE)
        worker.stop()
        ended.result(PATIENCE)
        after = client.get(job.id)
    assert any(job.id in each for each in messages(logged, logging.WARNING))
    if mode == "async":
        assert after.status == "retrying"
        assert after.error is not None
        assert after.error.code == "interrupted"
        return
    assert after.status == "running"
    ends.set()
    wait_for(client, completed=1)
    worker._manager.close()  # the function has used it after the end of the worker


def test_worker_async_run_cancelled_interrupts_functions_at_once(database: Database) -> None:
    async def main() -> None:
        begun = asyncio.Semaphore(0)

        async def work(attempt: Any) -> None:
            begun.release()
            await asyncio.sleep(PATIENCE)

        async with connect_async(database.url) as manager:
            jobs = [await manager.create("a", max_attempts=2) for _ in range(3)]
            worker = AsyncWorker(manager, {"a": work}, concurrency=2, grace=2 * MINUTE)
            task = asyncio.create_task(worker.run())
            for _ in range(2):
                await asyncio.wait_for(begun.acquire(), PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, PATIENCE)
            found = [await manager.get(job.id) for job in jobs]
            assert [each.status for each in found] == ["retrying", "retrying", "pending"]
            assert [each.error and each.error.code for each in found[:2]] == ["interrupted"] * 2

    asyncio.run(main())


def test_worker_async_run_cancelled_during_claim_releases(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with connect_async(database.url) as manager:
            jobs = [await manager.create("a") for _ in range(3)]
            claim = manager.claim

            async def cancel_and_claim(*args: Any, **options: Any) -> list[Execution]:
                asyncio.get_running_loop().call_soon(task.cancel)
                return await claim(*args, **options)

            monkeypatch.setattr(manager, "claim", cancel_and_claim)
            task = asyncio.create_task(AsyncWorker(manager, {"a": do_async}).run())
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, PATIENCE)
            found = [await manager.get(job.id) for job in jobs]
            assert [each.status for each in found] == ["retrying"] * 3

    asyncio.run(main())


def test_worker_async_stop_just_after_begin_interrupts_the_function(
    database: Database, client: ExecutionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task of the function has been created in the same step of the event loop."""

    async def work(attempt: Any) -> None:
        await asyncio.sleep(PATIENCE)

    worker = connect_worker(database.url, "async", {"a": work}, grace=timedelta(0))
    begin = worker._begin

    async def begin_and_stop(execution: Execution) -> None:
        await begin(execution)
        worker._stopping = True
        worker._wakes.set()

    monkeypatch.setattr(worker, "_begin", begin_and_stop)
    job = client.create("a", max_attempts=2)
    with running(worker) as ended:
        ended.result(PATIENCE)
    assert client.get(job.id).status == "retrying"


# --- processes --------------------------------------------------------------------------------

PROCESS = """
import asyncio, signal, sys, time
from datetime import datetime, timedelta
from execution_core import connect, connect_async
from execution_core.worker import AsyncWorker, Worker

url, mode, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
options = {"concurrency": 2, "worker": "process", "heartbeat": timedelta(milliseconds=100)}

def work(attempt):
    time.sleep(seconds)
    return attempt.number

async def work_async(attempt):
    await asyncio.sleep(seconds)
    return attempt.number

async def main():
    async with connect_async(url) as manager:
        await AsyncWorker(manager, {"a": work_async}, **options).run()

signal.signal(signal.SIGINT, signal.SIG_IGN)
before = signal.getsignal(signal.SIGTERM)
if mode == "async":
    asyncio.run(main())
else:
    Worker(connect(url), {"a": work}, **options).run()
assert signal.getsignal(signal.SIGTERM) is before
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
print("ended")
"""


@contextmanager
def process(database: Database, mode: str, seconds: float) -> "Iterator[subprocess.Popen[str]]":
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROCESS, database.url, mode, str(seconds)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as started:  # fmt: skip
        try:
            yield started
        finally:
            started.kill()


def test_worker_sigterm_finishes_what_runs_and_exits_with_0(
    database: Database, mode: str, client: ExecutionManager
) -> None:
    for _ in range(8):
        client.create("a")
    begun = "SELECT 1 FROM executions WHERE status = 'running' AND heartbeat_at > started_at"
    with process(database, mode, seconds=0.5) as started:
        wait_until(lambda: len(database.rows(begun)) == 2)
        started.send_signal(signal.SIGINT)  # ignored before: a worker does not change that
        wait_until(lambda: client.count(status="completed") >= 2)
        wait_until(lambda: len(database.rows(begun)) == 2)
        started.terminate()
        started.terminate()
        output, errors = started.communicate(timeout=PATIENCE)
        assert (started.returncode, output) == (0, "ended\n"), errors
    done = client.count(status="completed")
    assert 4 <= done < 8
    assert client.count(status=["pending", "retrying"]) == 8 - done
    assert database.rows("SELECT 1 FROM execution_attempts WHERE outcome = 'failed'") == []


def test_worker_killed_process_other_worker_completes_its_executions(
    database: Database, mode: str, client: ExecutionManager
) -> None:
    jobs = [client.create("a", max_attempts=9) for _ in range(4)]
    with process(database, mode, seconds=PATIENCE) as started:
        wait_for(client, running=2)
        started.kill()
        started.wait()
    foreign = client.start(client.create("foreign", max_attempts=2).id)
    with running(connect_worker(database.url, mode, {"a": lambda _: 1}, **SWEEPS)):
        wait_for(client, completed=4)
    assert sum(client.get(job.id).attempts >= 2 for job in jobs) >= 2
    assert client.get(foreign.id).status == "running"
    assert_legal(database)


# --- outages ----------------------------------------------------------------------------------


@contextmanager
def breakable(database: Database, mode: str) -> Iterator[tuple[Any, Any]]:
    """Return a manager and a function that begins an outage: `with outage(): ...`."""
    if database.name == "postgresql":
        with proxied(database.url) as proxy:
            yield (connect if mode == "sync" else connect_async)(proxy.url), proxy.outage
        return
    busy = timedelta(milliseconds=100)
    if mode == "sync":
        engine = configure_sqlite(create_engine(database.url), busy_timeout=busy)
        yield ExecutionManager(SqlExecutionStore(engine)), database.engine.begin
        engine.dispose()
        return
    url = database.url.replace("sqlite:", "sqlite+aiosqlite:")
    host = create_async_engine(url)
    configure_sqlite(host, busy_timeout=busy)
    manager: Any = AsyncExecutionManager(AsyncSqlExecutionStore(host))
    manager.close = host.dispose
    yield manager, database.engine.begin


def test_worker_outage_is_survived_with_one_warning(
    database: Database, mode: str, client: ExecutionManager, logged: pytest.LogCaptureFixture
) -> None:
    with breakable(database, mode) as (manager, outage):
        worker = new_worker(manager, {"a": lambda _: None}, worker="host-1")
        with running(worker):
            for n in range(1, 3):
                client.create("a")
                wait_for(client, completed=n)
                with outage():
                    wait_until(lambda: worker._failures >= 2)
                wait_until(lambda: worker._failures == 0)
            client.create("a")
            wait_for(client, completed=3)
    warnings = [m for m in messages(logged, logging.WARNING) if "host-1" in m]
    assert len(warnings) == 2, warnings
    assert all("cannot claim or sweep" in each and "\n" not in each for each in warnings)
    assert len([m for m in messages(logged, logging.INFO) if "answers again" in m]) == 2


def test_worker_misuse_ends_the_run(database: Database) -> None:
    """A clock that returns naive times would fail at every claim."""
    store = SqlExecutionStore(database.engine, clock=datetime.now)
    with pytest.raises(InvalidValue, match=r"^clock must return aware"):
        Worker(ExecutionManager(store), {"a": do}).run()


# --- arguments --------------------------------------------------------------------------------


async def do_async(attempt: Any) -> None: ...


def do(attempt: Any) -> None: ...


def generate(attempt: Any) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("functions", "options", "argument"),
    [
        ({}, {}, "functions"),
        ([do], {}, "functions"),
        ({"": do}, {}, "functions"),
        ({"a": "do"}, {}, r"functions\['a'\]"),
        ({"a": do_async}, {}, r"functions\['a'\]"),
        ({"a": generate}, {}, r"functions\['a'\]"),
        ({"a": do}, {"concurrency": 0}, "concurrency"),
        ({"a": do}, {"worker": ""}, "worker"),
        ({"a": do}, {"heartbeat": None}, "heartbeat"),
        ({"a": do}, {"retry_on": "OSError"}, "retry_on"),
        ({"a": do}, {"backoff": 5}, "backoff"),
        ({"a": do}, {"heartbeat": MINUTE, "stalled_after": MINUTE}, "stalled_after"),
        ({"a": do}, {"poll": timedelta(0)}, "poll"),
        ({"a": do}, {"grace": -MINUTE}, "grace"),
        ({"a": do}, {"signals": 1}, "signals"),
    ],
)
def test_worker_invalid_arguments_are_refused(
    functions: Any, options: dict[str, Any], argument: str
) -> None:
    manager: Any = connect("sqlite:///never-opened.db")
    with pytest.raises(InvalidValue, match=f"^{argument} "):
        Worker(manager, functions, **options)


def test_worker_of_the_other_api_is_refused() -> None:
    sync: Any = connect("sqlite:///never-opened.db")
    asynchronous: Any = connect_async("sqlite:///never-opened.db")
    with pytest.raises(InvalidValue, match=r"^manager must be an ExecutionManager"):
        Worker(asynchronous, {"a": do})
    with pytest.raises(InvalidValue, match=r"^manager must be an AsyncExecutionManager"):
        AsyncWorker(sync, {"a": do_async})
    plain: Any = do
    with pytest.raises(InvalidValue, match=r"must be an async function: Worker takes others"):
        AsyncWorker(asynchronous, {"a": plain})


def test_worker_without_heartbeats_is_refused(client: ExecutionManager, database: Database) -> None:
    with connect("sqlite://") as memory, pytest.raises(InvalidValue, match=r"^heartbeat needs"):
        Worker(memory, {"a": do})
    with (
        database.engine.begin() as connection,
        pytest.raises(InvalidValue, match=r"^heartbeat needs"),
    ):
        Worker(client.within(connection), {"a": do})
