"""Tracked functions: each call is an execution, run once and retried in place."""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any

import pytest

from execution_core import (
    AlreadyRunning,
    Attempt,
    AttemptLost,
    Backoff,
    ExecutionManager,
    ExecutionStatus,
    IdempotencyConflict,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
    connect,
    connect_async,
)

from ..conftest import Blocking, Clock, Database
from ..support.history import assert_legal
from ..support.sampling import sampled


class Outage(Exception):
    pass


def track(manager: Any, *args: Any, **options: Any) -> Callable[[Any], Any]:
    """Track a sync function; for asyncio wrap it in a coroutine function and run each call."""

    def decorate(function: Any) -> Any:
        if not isinstance(manager, Blocking):
            return manager.tracked(*args, **options)(function)

        @wraps(function)
        async def work(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return function(*args, **kwargs)

        call = manager.target.tracked(*args, **options)(work)
        return lambda *args, **kwargs: manager.runner.run(call(*args, **kwargs))

    return decorate


def test_tracked_call_is_an_execution(any_manager: ExecutionManager) -> None:
    calls = []

    @track(
        any_manager,
        "payment",
        idempotency_key=lambda order: f"pay-{order['id']}",
        payload=lambda order: order,
        max_attempts=3,
        timeout=timedelta(minutes=1),
        worker="host",
    )
    def pay(order: dict[str, int]) -> tuple[int, dict[str, int]]:
        """Charge it."""
        calls.append(order)
        return order["id"], order

    assert [pay({"id": 7}) for _ in range(3)] == 3 * [(7, {"id": 7})]
    assert calls == [{"id": 7}]
    job = any_manager.find_by_idempotency_key("pay-7")
    assert job is not None
    assert (job.type, job.payload, job.status) == ("payment", {"id": 7}, "completed")
    assert (job.max_attempts, job.timeout) == (3, timedelta(minutes=1))
    assert (job.attempts, job.worker) == (1, "host")
    assert pay(order={"id": 8}) == (8, {"id": 8})
    with pytest.raises(IdempotencyConflict):
        pay({"id": 7, "more": 1})


def test_tracked_without_key_runs_every_call(any_manager: ExecutionManager) -> None:
    @track(any_manager, "a")
    def work() -> None:
        return None

    assert [work(), work()] == [None, None]
    assert [e.status for e in any_manager.list(type="a")] == ["completed", "completed"]


def test_tracked_retryable_error_is_retried_in_place(any_manager: ExecutionManager) -> None:
    begun = []

    @track(
        any_manager,
        "a",
        idempotency_key=lambda: "k",
        max_attempts=3,
        retry_on=(Outage,),
        backoff=Backoff(timedelta(milliseconds=20), jitter=0),
    )
    def work() -> int:
        begun.append(time.monotonic())
        if len(begun) < 3:
            raise Outage
        return len(begun)

    assert work() == 3
    first, second, third = begun
    assert second - first >= 0.02
    assert third - second >= 0.04
    job = any_manager.find_by_idempotency_key("k")
    assert job is not None
    assert (job.status, job.attempts, job.error) == ("completed", 3, None)


def test_tracked_without_attempts_left_raises(any_manager: ExecutionManager) -> None:
    errors = [Outage(n) for n in range(9)]
    raised = iter(errors)

    @track(any_manager, "a", idempotency_key=lambda: "k", max_attempts=2, retry_on=Outage)
    def work() -> None:
        raise next(raised)

    with pytest.raises(Outage) as caught:
        work()
    assert caught.value is errors[1]
    job = any_manager.find_by_idempotency_key("k")
    assert job is not None
    assert (job.status, job.attempts) == ("failed", 2)
    with pytest.raises(MaxRetriesExceeded):
        work()
    assert any_manager.get(job.id) == job


def test_tracked_non_retryable_error_runs_at_next_call(
    any_manager: ExecutionManager,
) -> None:
    answers: list[Any] = [ValueError("bad"), "good"]

    @track(any_manager, "a", idempotency_key=lambda: "k", max_attempts=2, retry_on=Outage)
    def work() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(ValueError, match="bad"):
        work()
    job = any_manager.find_by_idempotency_key("k")
    assert job is not None
    assert job.status == "failed"
    assert [work(), work()] == ["good", "good"]
    assert any_manager.get(job.id).attempts == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), asyncio.CancelledError()])
def test_tracked_interrupted_runs_at_next_call(
    manager: ExecutionManager, error: BaseException
) -> None:
    errors = [error]

    @track(manager, "a", idempotency_key=lambda: "k", max_attempts=2)
    def work() -> int:
        while errors:
            raise errors.pop()
        return 7

    with pytest.raises(type(error)):
        work()
    job = manager.find_by_idempotency_key("k")
    assert job is not None
    assert job.status == "retrying"
    assert work() == 7


def test_tracked_running_elsewhere_raises_already_running(any_manager: ExecutionManager) -> None:
    @track(any_manager, "a", idempotency_key=lambda: "k", max_attempts=3)
    def work() -> int:
        return 7

    job = any_manager.create("a", idempotency_key="k", max_attempts=3)
    running = any_manager.start(job.id, worker="host-2")
    with pytest.raises(AlreadyRunning) as caught:
        work()
    assert caught.value.execution == running
    assert caught.value.code == "ALREADY_RUNNING"
    message = f"Execution {job.id} is already running: attempt 1, worker 'host-2'. "
    assert str(caught.value).startswith(message)
    assert any_manager.get(job.id) == running
    any_manager.timeout(job.id)
    assert work() == 7
    assert any_manager.get(job.id).attempts == 2


def test_tracked_cancelled_is_refused(any_manager: ExecutionManager) -> None:
    @track(any_manager, "a", idempotency_key=lambda: "k")
    def work() -> None:
        pytest.fail("it ran")

    any_manager.cancel(any_manager.create("a", idempotency_key="k").id)
    with pytest.raises(InvalidStateTransition, match="its status is cancelled"):
        work()


def test_tracked_waits_for_retry_delay(any_manager: ExecutionManager) -> None:
    @track(any_manager, "a", idempotency_key=lambda: "k", max_attempts=2)
    def work() -> int:
        return 7

    job = any_manager.create("a", idempotency_key="k", max_attempts=2)
    any_manager.start(job.id)
    begun = time.monotonic()
    any_manager.fail(job.id, "no", retryable=True, retry_after=timedelta(milliseconds=200))
    assert work() == 7
    assert time.monotonic() - begun >= 0.199  # the database counts in milliseconds


def test_tracked_elapsed_retry_delay_is_not_waited_for(
    clocked_manager: ExecutionManager, clock: Clock
) -> None:
    @track(clocked_manager, "a", idempotency_key=lambda: "k", max_attempts=2)
    def work() -> int:
        return 7

    clock.time = datetime.now(UTC) - timedelta(seconds=61)
    job = clocked_manager.create("a", idempotency_key="k", max_attempts=2)
    clocked_manager.start(job.id)
    clocked_manager.fail(job.id, "no", retryable=True, retry_after=timedelta(seconds=60))
    clock.time += timedelta(seconds=61)
    begun = time.monotonic()
    assert work() == 7
    assert time.monotonic() - begun < 59


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_tracked_interruption_is_not_retried_in_place(
    manager: ExecutionManager, error: type[BaseException]
) -> None:
    ran = []

    @track(manager, "a", max_attempts=5, retry_on=BaseException)
    def work() -> None:
        ran.append(1)
        raise error

    with pytest.raises(error):
        work()
    assert ran == [1]


def test_tracked_function_raising_refusal_propagates(any_manager: ExecutionManager) -> None:
    problem = InvalidStateTransition("id", "start", ExecutionStatus.FAILED, None, ())

    @track(any_manager, "a")
    def work() -> None:
        raise problem

    with pytest.raises(InvalidStateTransition) as caught:
        work()
    assert caught.value is problem


def test_tracked_wrong_arguments_create_nothing(any_manager: ExecutionManager) -> None:
    @track(any_manager, "a")
    def work(order: int) -> None:
        pytest.fail("it ran")

    for arguments in ((), (1, 2)):
        with pytest.raises(TypeError, match="argument"):
            work(*arguments)
    with pytest.raises(TypeError, match="attempt"):
        work(1, attempt=1)

    @track(any_manager, "a")
    def keywords(*, attempt: Any = None, **others: Any) -> None:
        pytest.fail("it ran")

    if not isinstance(any_manager, Blocking):
        with pytest.raises(TypeError, match="attempt is injected"):
            keywords(attempt=1)
    assert any_manager.list() == []


@pytest.mark.slow
def test_tracked_cancelled_while_starting_is_not_left_running(database: Database) -> None:
    async def run() -> set[str]:
        seen = set()
        async with connect_async(database.url) as manager:

            @manager.tracked("a", max_attempts=2)
            async def work() -> int:
                await asyncio.sleep(0.02)
                return 7

            for steps in sampled(range(300), 6):
                task = asyncio.create_task(work())
                await asyncio.sleep(steps * 0.0002)
                if not task.cancel():
                    break
                await asyncio.wait([task])
                for job in await manager.list():
                    seen.add(str(job.status))
                    await manager.delete(job.id)
        return seen

    seen = asyncio.run(asyncio.wait_for(run(), 60))
    assert "retrying" in seen
    assert "running" not in seen


def test_tracked_unstorable_result_fails(any_manager: ExecutionManager) -> None:
    @track(any_manager, "a", idempotency_key=lambda: "k")
    def work() -> Any:
        return {1, 2}

    with pytest.raises(InvalidValue, match="result contains a set"):
        work()
    job = any_manager.find_by_idempotency_key("k")
    assert job is not None
    assert job.status == "failed"


def test_tracked_attempt_lost_is_not_retried(database: Database) -> None:
    with connect(database.url) as manager:

        @manager.tracked("a", max_attempts=3, retry_on=Exception)
        def work(*, attempt: Any) -> None:
            manager.timeout(attempt.execution.id)
            manager.retry(attempt.execution.id)
            attempt.heartbeat()

        with pytest.raises(AttemptLost):
            work()  # type: ignore[call-arg]
        (job,) = manager.list()
        assert (job.status, job.attempts) == ("retrying", 1)


def test_tracked_passes_attempt_as_keyword(database: Database) -> None:
    with connect(database.url) as manager:

        @manager.tracked("a", max_attempts=2, retry_on=Outage)
        def work(n: int, *, attempt: Attempt | None = None) -> list[int]:
            assert attempt is not None
            done = [item for item in attempt.each(range(n)) if item != 3 or attempt.number > 1]
            if attempt.number == 1:
                raise Outage
            return done

        assert work(5) == []
        assert list(inspect.signature(work).parameters) == ["n"]

        class Service:
            @manager.tracked("b", idempotency_key=lambda self, n: f"b-{n}")
            def double(self, n: int) -> int:
                return 2 * n

        assert [Service().double(4), Service().double(4)] == [8, 8]
        (job,) = manager.list(type="b")
        assert job.status == "completed"

    async def run() -> None:
        async with connect_async(database.url) as manager:

            @manager.tracked("c", heartbeat=timedelta(milliseconds=5))
            async def work(n: int, attempt: Any = None) -> list[int]:
                return [item async for item in attempt.each(range(n))]

            assert await work(3) == [0, 1, 2]
            assert inspect.iscoroutinefunction(work)

    asyncio.run(run())


def test_tracked_invalid_options_are_refused(database: Database) -> None:
    async def coroutine_function() -> None: ...

    with connect(database.url) as manager:
        for options in (
            {"retry_on": "ValueError"},
            {"backoff": 5},
            {"heartbeat": 5},
            {"timeout": 5},
            {"max_attempts": 0},
            {"worker": ""},
            {"idempotency_key": "key"},
            {"payload": {"a": 1}},
        ):
            with pytest.raises(InvalidValue, match=f"^{next(iter(options))} "):
                manager.tracked("a", **options)
        with pytest.raises(InvalidValue, match=r"^type must not be empty"):
            manager.tracked("")
        with pytest.raises(InvalidValue, match="a plain function: AsyncExecutionManager tracks"):
            manager.tracked("a")(coroutine_function)
        assert manager.list() == []


def attempt_first(attempt: Any, order: int) -> None: ...
def attempt_before_others(order: int, attempt: Any = None, more: int = 1) -> None: ...
def attempt_positional_only(attempt: Any, /) -> None: ...
def attempt_before_varargs(attempt: Any, *orders: int) -> None: ...


def generator() -> Any:
    yield 1


async def asynchronous_generator() -> Any:
    yield 1


class AsyncCallable:
    async def __call__(self) -> None: ...


KEYWORD = "must take its attempt as a keyword"
UNKNOWN_PARAMETERS = "must have parameters that Python"
UNSUITABLE: list[tuple[Any, str]] = [
    *(
        (function, KEYWORD)
        for function in (
            attempt_first,
            attempt_before_others,
            attempt_positional_only,
            attempt_before_varargs,
        )
    ),
    *(
        (function, UNKNOWN_PARAMETERS)
        for function in (None, 7, classmethod(attempt_positional_only), int)
    ),
    *((function, "must return its result") for function in (generator, asynchronous_generator)),
    (AsyncCallable(), "must be a plain function: AsyncExecutionManager tracks others"),
]


@pytest.mark.parametrize(("function", "message"), UNSUITABLE)
def test_tracked_unsuitable_functions_are_refused(
    database: Database, function: Any, message: str
) -> None:
    with connect(database.url) as manager, pytest.raises(InvalidValue, match=f"function {message}"):
        manager.tracked("a")(function)


def test_tracked_sync_function_on_async_manager_is_refused(database: Database) -> None:
    asynchronous = connect_async(database.url)
    with pytest.raises(InvalidValue, match="an async function: ExecutionManager tracks"):
        asynchronous.tracked("a")(len)
    asyncio.run(asynchronous.close())


@pytest.mark.slow
def test_tracked_by_eight_threads_runs_once(database: Database) -> None:
    with connect(database.url) as manager:
        for n in range(10):
            ran, barrier = [], threading.Barrier(8)

            @manager.tracked("a", idempotency_key=lambda n: f"k-{n}", max_attempts=3)
            def work(n: int) -> int:
                ran.append(n)  # noqa: B023
                time.sleep(0.005)
                return n

            def call(n: int, barrier: Any = barrier, work: Any = work) -> Any:
                barrier.wait(30)
                try:
                    return work(n)
                except AlreadyRunning:
                    return "elsewhere"

            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(call, [n] * 8))
            assert ran == [n]
            assert set(answers) <= {n, "elsewhere"}
            assert n in answers
    assert_legal(database)


@pytest.mark.slow
def test_tracked_by_eight_threads_after_failure_runs_once(database: Database) -> None:
    with connect(database.url) as manager:
        ran = []

        @manager.tracked("a", idempotency_key=lambda n: f"k-{n}", max_attempts=2)
        def work(n: int) -> int:
            ran.append(n)
            if ran.count(n) == 1:
                raise Outage
            time.sleep(0.005)
            return n

        def call(n: int, barrier: Any) -> Any:
            barrier.wait(30)
            try:
                return work(n)
            except AlreadyRunning:
                return "elsewhere"

        for n in range(10):
            with pytest.raises(Outage):
                work(n)
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(call, [n] * 8, [threading.Barrier(8)] * 8))
            assert ran.count(n) == 2
            assert set(answers) <= {n, "elsewhere"}
    assert_legal(database)


def test_tracked_call_takes_over_from_a_killed_caller(any_manager: ExecutionManager) -> None:
    """Past the deadline of its attempt, without anybody who sweeps."""
    options: dict[str, Any] = {"timeout": timedelta(milliseconds=1), "max_attempts": 2}

    @track(any_manager, "work", idempotency_key=lambda: "k", **options)
    def work() -> str:
        return "done"

    killed = any_manager.create("work", idempotency_key="k", **options)
    any_manager.start(killed.id)
    while True:
        try:
            assert work() == "done"
            break
        except AlreadyRunning:  # its deadline has not passed yet
            time.sleep(0.01)
    found = any_manager.get(killed.id)
    assert (found.status, found.attempts) == ("completed", 2)


def test_tracked_call_beside_a_caller_within_its_time_is_refused(
    any_manager: ExecutionManager,
) -> None:
    for timeout in (None, timedelta(hours=1)):
        key = str(timeout)

        @track(any_manager, "work", idempotency_key=lambda: key, timeout=timeout)
        def work() -> None: ...

        running = any_manager.create("work", idempotency_key=key, timeout=timeout)
        any_manager.start(running.id)
        with pytest.raises(AlreadyRunning):
            work()
        assert any_manager.get(running.id).status == "running"
