"""A cancellation at every await of every verb: the pool stays complete, the row is before or after.

On the engine of `connect_async`, on that of a host, and on one with a listener, whose statements go
through SQLAlchemy.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg.waiting
import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import greenlet_spawn

from execution_core import AsyncSqlExecutionStore, Execution
from execution_core.core import transitions
from execution_core.sql.driver import async_executor, executor
from execution_core.stores import Transition

from ..conftest import Database
from ..support import injection
from ..support.injection import (
    AttemptScenario,
    Figures,
    ManagerHarness,
    Scenario,
    Tell,
    freeze_garbage,
    summary,
)
from ..support.interruptions import Interrupt, cancel_after_result, cancel_while_waiting
from ..support.verbs import VERBS, Verb
from .every_await import KINDS, WAYS, async_block, at_every_await, block, verbs_of


@pytest.fixture(autouse=True)
def pools_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With a pool of one, the next call needs the connection of the interrupted call."""
    for module in (executor, async_executor):
        monkeypatch.setattr(module, "OWN_POOL", 1)
    # By default psycopg awaits only after the loop was busy; now it awaits at every chance.
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0, raising=False)
    with freeze_garbage():
        yield


@pytest.mark.slow
@KINDS
@WAYS
def test_cancel_verb_at_every_await_row_is_before_or_after(
    database: Database, kind: str, way: Interrupt, tell: Tell
) -> None:
    figures: Figures = Counter()

    async def run(verb: Verb, first: int) -> None:
        subject, world = ManagerHarness(database, kind, "async"), Scenario(database, verb)
        ways: Any = lambda n: {n: way}  # noqa: E731
        await at_every_await(subject, world, ways, figures, every=3, first=first)
        await subject.close()
        world.close()

    verbs = verbs_of(kind)
    for number, verb in enumerate(verbs):
        asyncio.run(run(verb, number))
    tell(f"{database.name}, {kind}, {way.__name__}: {len(verbs)} verbs, {summary(figures)}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@KINDS
@WAYS
def test_cancel_while_connecting_at_every_await_pool_stays_complete(
    database: Database, kind: str, way: Interrupt, tell: Tell
) -> None:
    """psycopg may leave an unfinished connection to the garbage collector."""
    figures: Figures = Counter()

    async def run() -> None:
        subject, world = (
            ManagerHarness(database, kind, "async"),
            Scenario(database, VERBS["complete"]),
        )
        options: Any = {"ready": subject.close, "abandons": True, "every": 2}
        await at_every_await(subject, world, lambda n: {n: way}, figures, **options)
        await subject.close()
        world.close()

    asyncio.run(run())
    tell(f"{database.name}, {kind}, connecting, {way.__name__}: {summary(figures)}")


@pytest.mark.slow
@KINDS
def test_cancel_twice_at_every_await_row_is_before_or_after(
    database: Database, kind: str, tell: Tell
) -> None:
    """The second cancellation comes while the call handles the first."""
    figures: Figures = Counter()

    def twice(later: int) -> Callable[[int], dict[int, Interrupt]]:
        return lambda n: {n: cancel_while_waiting, n + later: cancel_while_waiting}

    async def run() -> None:
        subject, world = (
            ManagerHarness(database, kind, "async"),
            Scenario(database, VERBS["complete"]),
        )
        for later in range(1, 6):
            options: Any = {"every": 2, "first": later}
            await at_every_await(subject, world, twice(later), figures, **options)
        await subject.close()
        world.close()

    asyncio.run(run())
    tell(f"{database.name}, {kind}, twice: {summary(figures)}")


@pytest.mark.slow
@KINDS
@WAYS
def test_cancel_verification_at_every_await_row_is_before_or_after(
    postgres_database: Database, kind: str, way: Interrupt, tell: Tell
) -> None:
    """PostgreSQL only: SQLite has no connection to lose."""
    database, figures = postgres_database, Counter[str]()
    database.empty()

    async def run() -> None:
        subject, world = (
            ManagerHarness(database, kind, "async"),
            Scenario(database, VERBS["complete"]),
        )

        async def sever() -> None:
            subject.sever()

        options: Any = {"ready": sever, "abandons": True, "every": 2}
        await at_every_await(subject, world, lambda n: {n: way}, figures, **options)
        await subject.close()
        world.close()

    asyncio.run(run())
    tell(f"{database.name}, {kind}, severed, {way.__name__}: {summary(figures)}")


@pytest.mark.slow
@KINDS
@WAYS
@pytest.mark.parametrize("state", ["pending", "running"])
def test_cancel_attempt_block_at_every_await_end_is_recorded(
    database: Database, kind: str, way: Interrupt, state: str, tell: Tell
) -> None:
    figures: Figures = Counter()

    async def run() -> None:
        subject = ManagerHarness(database, kind, "async")
        world = AttemptScenario(database, Verb(state, block))
        await at_every_await(subject, world, lambda n: {n: way}, figures, call=async_block, every=3)
        await subject.close()
        world.close()

    asyncio.run(run())
    tell(f"{database.name}, {kind}, block, {state}, {way.__name__}: {summary(figures)}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["AsyncConnection", "AsyncSession"])
@WAYS
def test_cancel_host_transaction_at_every_await_row_is_before_or_after(
    database: Database, kind: str, way: Interrupt, tell: Tell
) -> None:
    """Up to the commit. On SQLite, SQLAlchemy may leave its lock to the garbage collector."""
    figures: Figures = Counter()

    async def run(verb: Verb) -> None:
        subject, world = ManagerHarness(database, "host", "async"), Scenario(database, verb)
        subject.lock_timeout = 10

        async def call(manager: Any, job: Execution) -> None:
            if kind == "AsyncConnection":
                async with subject.host.begin() as connection:
                    await verb.call(manager.within(connection), job)
            else:
                async with AsyncSession(subject.host) as session, session.begin():
                    await verb.call(manager.within(session), job)

        options: Any = {"call": call, "abandons": True, "every": 3}
        await at_every_await(subject, world, lambda n: {n: way}, figures, **options)
        await subject.close()
        world.close()

    for name in ("create with a key", "complete", "claim", "delete", "a refusal"):
        asyncio.run(run(VERBS[name]))
    tell(f"{database.name}, within {kind}, {way.__name__}: {summary(figures)}")


@pytest.mark.slow
@KINDS
def test_cancel_write_waiting_for_lock_changes_nothing(
    postgres_database: Database, kind: str
) -> None:
    """PostgreSQL only: the driver of SQLite cannot stop waiting."""
    database = postgres_database
    database.empty()

    async def run(verb: Verb) -> None:
        subject, world = ManagerHarness(database, kind, "async"), Scenario(database, verb)
        await subject.manager.list()
        with database.engine.connect() as other:
            other.exec_driver_sql("LOCK TABLE executions IN EXCLUSIVE MODE")
            task = asyncio.create_task(verb.call(subject.manager, world.target))
            while not subject.backends(waiting_for="Lock"):
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.wait([task], timeout=10)
            assert task.cancelled()
            subject.assert_free()
        assert world.end() == "before"
        await subject.close()
        world.close()

    for verb in verbs_of(kind):
        if verb.writes:
            asyncio.run(asyncio.wait_for(run(verb), 60))


@pytest.mark.slow
def test_cancel_check_detects_write_in_two_statements(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = AsyncSqlExecutionStore.update

    async def update_twice(store: Any, id: str, _: Transition) -> Any:
        await update(store, id, transitions.update_progress(1, 2, None, None, None))
        return await update(store, id, transitions.checkpoint("k", 2, None))

    async def run() -> None:
        subject, world = (
            ManagerHarness(database, "own", "async"),
            Scenario(database, VERBS["advance"]),
        )
        with closing(world), pytest.raises(AssertionError, match="in between"):
            await at_every_await(subject, world, lambda n: {n: cancel_after_result}, Counter())
        await subject.close()

    monkeypatch.setattr(AsyncSqlExecutionStore, "update", update_twice)
    asyncio.run(run())


def test_cancel_check_detects_leaked_connection(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL only: there a cancelled call closes its connection."""
    database, leaked = postgres_database, list[Any]()
    database.empty()

    async def run() -> None:
        subject, world = (
            ManagerHarness(database, "own", "async"),
            Scenario(database, VERBS["advance"]),
        )
        with closing(world), pytest.raises(AssertionError, match="of which are known"):
            await at_every_await(subject, world, lambda n: {n: cancel_after_result}, Counter())
        monkeypatch.undo()
        for pooled in leaked:
            await greenlet_spawn(drop, subject, pooled)
        await subject.close()

    monkeypatch.setattr(injection, "TIMEOUT", 1)
    drop = async_executor.AsyncCachingExecutor._drop
    monkeypatch.setattr(
        async_executor.AsyncCachingExecutor, "_drop", lambda _, pooled: leaked.append(pooled)
    )
    asyncio.run(run())
