"""Types of the public names. mypy checks this file; nothing runs it."""

import asyncio
from datetime import datetime, timedelta
from typing import Any, assert_type

from pydantic import BaseModel
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from execution_core import (
    AlreadyRunning,
    AsyncAttempt,
    AsyncChunk,
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    Attempt,
    AttemptLost,
    AttemptRecord,
    Backoff,
    ChildrenSummary,
    Chunk,
    Execution,
    ExecutionFailure,
    ExecutionManager,
    ExecutionNotFound,
    ExecutionProblem,
    ExecutionProblemCode,
    ExecutionStatus,
    HistoryEntry,
    InvalidStateTransition,
    LogEntry,
    LogLevel,
    ProgressInfo,
    SqlExecutionStore,
    configure_sqlite,
    connect,
    connect_async,
    migrate,
)
from execution_core.stores import AsyncExecutionStore, ExecutionStore
from execution_core.testing import ExecutionClock
from execution_core.worker import AsyncWorker, Worker
from tests.support.memory import AsyncMemoryStore

engine = configure_sqlite(create_engine("sqlite://"), busy_timeout=timedelta(seconds=5))
store: ExecutionStore = SqlExecutionStore(engine, clock=datetime.now)
async_store: AsyncExecutionStore = AsyncSqlExecutionStore(
    create_async_engine("sqlite+aiosqlite://")
)
async_own: AsyncExecutionStore = AsyncMemoryStore()


class Order(BaseModel):
    order_id: int


def verbs(manager: ExecutionManager, session: Session, connection: Connection) -> None:
    execution = manager.create(
        "type",
        {"any": ["json", 1]},
        max_attempts=3,
        timeout=timedelta(seconds=30),
        idempotency_key="key",
        parent_id="id",
        metadata={"a": 1},
    )
    assert_type(execution, Execution)
    order = Order(order_id=7)
    assert_type(manager.create(order, max_attempts=3, idempotency_key="key"), Execution)
    assert_type(manager.create("type", order, timeout=None), Execution)
    assert_type(manager.create(type="type", payload=order), Execution)
    assert_type(manager.start(execution.id, worker="me"), Execution)
    assert_type(manager.complete(execution.id, [1], attempt=1), Execution)
    assert_type(manager.fail(execution.id, "text"), Execution)
    assert_type(manager.fail(execution.id, ValueError(), retryable=True, attempt=1), Execution)
    assert_type(manager.fail(execution.id, ExecutionFailure(message="x", code="E")), Execution)
    assert_type(manager.timeout(execution.id, attempt=1), Execution)
    assert_type(manager.cancel(execution.id, "reason"), Execution)
    assert_type(manager.retry(execution.id, extra_attempts=1, by="ada"), Execution)
    assert_type(manager.release(execution.id, attempt=1), Execution)
    assert_type(manager.annotate(execution.id, {"k": 1}), Execution)
    assert_type(manager.redact(execution.id), Execution)
    assert_type(manager.count(status="failed", type=["a", "b"]), int)
    assert_type(
        manager.update_progress(execution.id, 1, 2, message="m", percent=5.5, attempt=1), Execution
    )
    assert_type(manager.checkpoint(execution.id, "key", {"v": 1}, attempt=1), Execution)
    assert_type(manager.get(execution.id), Execution)
    assert_type(manager.wait(execution.id, timeout=timedelta(seconds=5)), Execution)
    assert_type(manager.wait_children(execution.id), ChildrenSummary)
    assert_type(manager.find_by_idempotency_key("key"), Execution | None)
    assert_type(manager.list(status=["pending", ExecutionStatus.RUNNING], limit=5), list[Execution])
    assert_type(manager.list(status="failed", type="t", parent_id="p", before="b"), list[Execution])
    assert_type(manager.within(session), ExecutionManager)
    assert_type(manager.within(connection).within(session), ExecutionManager)
    assert_type(manager.heartbeat(execution.id, attempt=1), Execution)
    assert_type(manager.replay(execution.id), Execution)
    assert_type(manager.replay(execution.id, payload=None), Execution)
    assert_type(manager.log(execution.id, "m", level="error", data={"a": 1}, attempt=1), LogEntry)
    assert_type(manager.log(execution.id, "m", level=LogLevel.ERROR).level, LogLevel)
    assert_type(manager.logs(execution.id, limit=5, before="id"), list[LogEntry])
    assert_type(manager.history(execution.id), list[HistoryEntry])
    assert_type(manager.attempts(execution.id), list[AttemptRecord])
    assert_type(manager.prune(timedelta(days=1), status="failed", type="a", limit=5), int)
    assert_type(manager.prune(timedelta(days=1), keys_older_than=timedelta(days=9)), int)
    assert_type(
        manager.advance(execution.id, 1, 2, key="key", value={"v": 1}, message="m"), Execution
    )
    assert_type(manager.claim("type", limit=5, worker="me"), list[Execution])
    assert_type(manager.sweep(stalled_after=timedelta(hours=1), limit=5), list[Execution])
    manager.create("type", start_after=timedelta(hours=1))
    manager.fail(execution.id, "text", retryable=True, retry_after=timedelta(seconds=5))
    manager.delete(execution.id)
    manager.within(None)  # type: ignore[arg-type]
    manager.create("type", timeout=30)  # type: ignore[call-overload]
    manager.create(order, {"a": 1})  # type: ignore[call-overload]
    manager.create(Order)  # type: ignore[call-overload]
    manager.create(order, retries=3)  # type: ignore[call-overload]
    manager.fail(execution.id, 7)  # type: ignore[arg-type]


def bulk_verbs(manager: ExecutionManager, execution: Execution) -> None:
    assert_type(
        manager.create_many([{"type": "a", "payload": {"n": 1}}, {"type": "b", "parent_id": "id"}]),
        list[Execution],
    )
    assert_type(
        manager.complete_many([(execution, {"any": 1}), ("id", None)], by="ada"),
        list[Execution | ExecutionProblem],
    )
    for answer in manager.fail_many(
        [(execution, ValueError()), ("id", "text")], retry_after=timedelta(seconds=5)
    ):
        assert_type(answer, Execution | ExecutionProblem)
    assert_type(manager.children(execution.id), ChildrenSummary)
    assert_type(manager.cancel_tree(execution.id, by="ada"), int)
    assert_type(manager.finish_with_children(execution.id, attempt=1), Execution)
    manager.fail_many([(execution, 7)])  # type: ignore[list-item]


async def async_verbs(manager: AsyncExecutionManager, session: AsyncSession) -> None:
    assert_type(await manager.create("type"), Execution)
    assert_type(await manager.create_many([{"type": "type"}]), list[Execution])
    assert_type(
        await manager.complete_many([("id", 1)]),
        list[Execution | ExecutionProblem],
    )
    assert_type(await manager.create(Order(order_id=7)), Execution)
    assert_type(await manager.history("id"), list[HistoryEntry])
    assert_type(await manager.attempts("id"), list[AttemptRecord])
    assert_type(await manager.list(), list[Execution])
    assert_type(await manager.wait("id"), Execution)
    assert_type(await manager.find_by_idempotency_key("key"), Execution | None)
    assert_type(manager.within(session), AsyncExecutionManager)
    async with connect_async("sqlite://") as own_manager:
        assert_type(own_manager, AsyncExecutionManager)
    with connect("sqlite://") as sync_manager:
        assert_type(sync_manager, ExecutionManager)
        sync_manager.within(session)  # type: ignore[arg-type]


def attempts(manager: ExecutionManager, session: Session) -> None:
    backoff = Backoff(timedelta(seconds=1), factor=3, maximum=timedelta(hours=1), jitter=0.5)
    assert_type(backoff.delay(3), timedelta)
    with manager.attempt(
        "id", worker="me", retry_on=(OSError, ValueError), backoff=backoff, heartbeat=timedelta(1)
    ) as attempt:
        assert_type(attempt, Attempt)
        assert_type(attempt.number, int)
        assert_type(attempt.execution, Execution)
        for item in attempt.each(["a"], checkpoint="last", every=10):
            assert_type(item, str)
        for chunk in attempt.chunks(["a"], size=100, checkpoint="last"):
            assert_type(chunk, Chunk[str])
            with chunk.begin(sessionmaker()) as opened:
                assert_type(opened, Session)
            with chunk.begin(create_engine("sqlite://")) as connection:
                assert_type(connection, Connection)
        attempt.update_progress(1, 2, message="message")
        assert_type(attempt.within(session).complete({"any": 1}), None)
        attempt.fail("no", retry_after=timedelta(1))
        attempt.within(session).advance(1, 2, key="key", value=[1])
        assert_type(attempt.lost.wait(1), bool)
        attempt.result = {"any": ["json", 1]}
        attempt.checkpoints["key"] = 1  # type: ignore[index]
    for claimed in manager.claim():
        with manager.attempt(claimed, retry_on=OSError):
            pass
    manager.attempt("id", retry_on=[OSError])  # type: ignore[arg-type]
    manager.attempt("id", heartbeat=5)  # type: ignore[arg-type]

    @manager.tracked("type", idempotency_key=lambda order: f"key-{order}", retry_on=OSError)
    def work(order: int, *, attempt: Attempt | None = None) -> list[int]:
        return [order, attempt.number if attempt else 0]

    assert_type(work(7), list[int])
    work("seven")  # type: ignore[arg-type]


async def async_attempts(manager: AsyncExecutionManager, session: AsyncSession) -> None:
    async with manager.attempt("id", heartbeat=timedelta(1), cancel_task=True) as attempt:
        assert_type(attempt, AsyncAttempt)
        assert_type(attempt.lost, asyncio.Event)
        async for item in attempt.each(["a"]):
            assert_type(item, str)
        async for chunk in attempt.chunks(["a"]):
            assert_type(chunk, AsyncChunk[str])
            async with chunk.begin(async_sessionmaker()) as opened:
                assert_type(opened, AsyncSession)
        await attempt.within(session).complete()
        await attempt.within(session).checkpoint("key", 1)

    @manager.tracked("type")
    async def work(order: int) -> list[int]:
        return [order]

    assert_type(await asyncio.create_task(work(7)), list[int])
    assert_type(await manager.claim(), list[Execution])


async def workers(manager: ExecutionManager, async_manager: AsyncExecutionManager) -> None:
    def ship(attempt: Attempt) -> dict[str, int]:
        return {"attempt": attempt.number}

    async def bill(attempt: AsyncAttempt) -> None:
        await attempt.update_progress(1, 2)

    second = timedelta(seconds=1)
    Worker(manager, {"ship": ship}, concurrency=2, worker="me", grace=second, poll=second).run()
    Worker(manager, {"ship": ship}, heartbeat=second, stalled_after=9 * second, retry_on=OSError)
    worker = AsyncWorker(async_manager, {"bill": bill}, backoff=None, signals=False)
    assert_type(await asyncio.create_task(worker.run()), None)
    worker.stop()
    Worker(async_manager, {"ship": ship})  # type: ignore[arg-type]
    Worker(manager, {"bill": bill})  # type: ignore[dict-item]
    AsyncWorker(async_manager, {"ship": ship})  # type: ignore[dict-item]


def data(execution: Execution) -> None:
    assert_type(execution.heartbeat_at, datetime | None)
    assert_type(execution.due_at, datetime | None)
    assert_type(execution.status, ExecutionStatus)
    assert_type(execution.payload, Any)
    assert_type(execution.error, ExecutionFailure | None)
    assert_type(execution.progress, ProgressInfo | None)
    assert_type(execution.timeout, timedelta | None)
    assert_type(execution.checkpoints, dict[str, Any])
    assert_type(ExecutionFailure.from_exception(ValueError(), retryable=True), ExecutionFailure)
    assert_type(execution.payload_as(Order), Order)
    assert_type(execution.payload_as(list[int]), list[int])
    assert_type(execution.result_as(list[int]), list[int])
    optional: Order | None = execution.result_as(Order | None)
    assert optional is None or assert_type(optional, Order).order_id
    execution.status = ExecutionStatus.FAILED  # type: ignore[misc]


def records(entry: HistoryEntry, record: AttemptRecord) -> None:
    assert_type(entry.from_status, ExecutionStatus | None)
    assert_type(entry.error, ExecutionFailure | None)
    assert_type(record.ended_at, datetime | None)
    assert_type(record.duration_seconds, float | None)
    entry.seq = 7  # type: ignore[misc]
    record.outcome = "failed"  # type: ignore[misc]


def problems(manager: ExecutionManager) -> None:
    try:
        manager.start("id")
    except InvalidStateTransition as problem:
        assert_type(problem.from_status, ExecutionStatus)
        assert_type(problem.to_status, ExecutionStatus | None)
    except AttemptLost as problem:
        assert_type(problem.execution, Execution | None)
    except AlreadyRunning as problem:
        assert_type(problem.execution, Execution)
    except ExecutionNotFound as problem:
        assert_type(problem.execution_id, str)
    except ExecutionProblem as problem:
        assert_type(problem.code, ExecutionProblemCode)


def migrating() -> None:
    migrate.upgrade(engine)
    migrate.upgrade("sqlite://")
    assert_type(migrate.check(engine), bool)
    assert_type(migrate.current(engine), str | None)


def testing(clock: ExecutionClock) -> None:
    clock.advance(timedelta(hours=1))
    clock.advance(hours=1, minutes=1.5)
    assert_type(clock.now, datetime)
    SqlExecutionStore(engine, clock=clock)
