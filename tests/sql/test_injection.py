"""A cancellation at every await of every verb: the pool is whole, and the row is before or after.

On an engine of the library's own, on a host's, and on that of a host that listens to its commits:
there every statement goes SQLAlchemy's own way.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
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
    BlockWorld,
    Figures,
    Subject,
    Tell,
    World,
    collect_garbage,
    in_time,
    little_garbage,
    said,
)
from ..support.interruptions import Awaits, Way, cancel_at_once, cancel_late
from ..support.signals import Interruption
from ..support.verbs import VERBS, Call, Verb


@pytest.fixture(autouse=True)
def pools_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The next call needs the connection of the one that was interrupted, and its place."""
    for module in (executor, async_executor):
        monkeypatch.setattr(module, "OWN_POOL", 1)
    # psycopg then awaits wherever it may: else it does so only when the loop has been busy.
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0, raising=False)
    with little_garbage():
        yield


async def at_every_await(
    subject: Subject,
    world: World,
    ways: Callable[[int], dict[int, Way]],
    figures: Figures,
    *,
    ready: Callable[[], Any] | None = None,
    call: Call | None = None,
    abandons: bool = False,
) -> None:
    """Make a call over and over, each time interrupted at the next await.

    One that abandons leaves connections to the garbage collector.
    """
    call, awaits = call or world.verb.call, Awaits()

    async def make_ready() -> None:
        await in_time(subject.manager.list(limit=1))
        subject.assert_free()
        if ready:
            await ready()

    for _ in range(2):  # what is done once has been done
        await make_ready()
        await awaits.run(call(subject.manager, world.target), {})
        world.end()
    last = awaits.seen
    for n in range(1, last + 1):
        await make_ready()
        end = await awaits.run(call(subject.manager, world.target), ways(n))
        told = isinstance(end, asyncio.CancelledError | Interruption)
        assert told or not awaits.interrupted, f"{end!r} at await {n}"
        end = None  # and what it holds
        if abandons:
            collect_garbage()
        subject.assert_free()
        figures[world.end()] += 1
        figures["interrupted twice"] += awaits.interrupted == 2
    figures["awaits"] += last
    await make_ready()


KINDS = pytest.mark.parametrize("kind", ["own", "host", "listening"])
WAYS = pytest.mark.parametrize("way", [cancel_at_once, cancel_late])


@KINDS
@WAYS
def test_every_verb_at_every_await(database: Database, kind: str, way: Way, tell: Tell) -> None:
    figures: Figures = Counter()

    async def run(verb: Verb) -> None:
        subject, world = Subject(database, kind, "async"), World(database, verb)
        await at_every_await(subject, world, lambda n: {n: way}, figures)
        await subject.close()
        world.close()

    for verb in VERBS.values():
        asyncio.run(run(verb))
    tell(f"{database.name}, {kind}, {way.__name__}: {len(VERBS)} verbs, {said(figures)}")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@KINDS
@WAYS
def test_while_it_connects(database: Database, kind: str, way: Way, tell: Tell) -> None:
    """psycopg may leave what it was connecting to the garbage collector."""
    figures: Figures = Counter()

    async def run() -> None:
        subject, world = Subject(database, kind, "async"), World(database, VERBS["complete"])
        options: Any = {"ready": subject.close, "abandons": True}
        await at_every_await(subject, world, lambda n: {n: way}, figures, **options)
        await subject.close()
        world.close()

    asyncio.run(run())
    tell(f"{database.name}, {kind}, connecting, {way.__name__}: {said(figures)}")


@KINDS
def test_cancelled_twice(database: Database, kind: str, tell: Tell) -> None:
    """Again at an await of what the first cancellation has set going."""
    figures: Figures = Counter()

    def twice(later: int) -> Callable[[int], dict[int, Way]]:
        return lambda n: {n: cancel_at_once, n + later: cancel_at_once}

    async def run() -> None:
        subject, world = Subject(database, kind, "async"), World(database, VERBS["complete"])
        for later in range(1, 6):
            await at_every_await(subject, world, twice(later), figures)
        await subject.close()
        world.close()

    asyncio.run(run())
    tell(f"{database.name}, {kind}, twice: {said(figures)}")


@KINDS
@WAYS
def test_while_it_finds_out_what_became_of_a_write(
    postgres_database: Database, kind: str, way: Way, tell: Tell
) -> None:
    """On PostgreSQL; no connection to SQLite is lost."""
    database, figures = postgres_database, Counter[str]()
    database.run("TRUNCATE executions CASCADE")

    async def run() -> None:
        subject, world = Subject(database, kind, "async"), World(database, VERBS["complete"])

        async def sever() -> None:
            subject.sever()

        options: Any = {"ready": sever, "abandons": True}
        await at_every_await(subject, world, lambda n: {n: way}, figures, **options)
        await subject.close()
        world.close()

    asyncio.run(run())
    tell(f"{database.name}, {kind}, severed, {way.__name__}: {said(figures)}")


HOUR = timedelta(hours=1)


def block(manager: Any, job: Execution) -> None:
    with manager.attempt(job if job.status == "running" else job.id) as attempt:
        for _ in attempt.each("ab"):
            pass
        attempt.log("half way")
        attempt.result = 7


async def async_block(manager: Any, job: Execution) -> None:
    given = job if job.status == "running" else job.id
    async with manager.attempt(given, heartbeat=HOUR) as attempt:
        async for _ in attempt.each("ab"):
            pass
        await attempt.log("half way")
        attempt.result = 7


@KINDS
@WAYS
@pytest.mark.parametrize("situation", ["pending", "running"])
def test_a_block_at_every_await(
    database: Database, kind: str, way: Way, situation: str, tell: Tell
) -> None:
    figures: Figures = Counter()

    async def run() -> None:
        subject = Subject(database, kind, "async")
        world = BlockWorld(database, Verb(situation, block))
        await at_every_await(subject, world, lambda n: {n: way}, figures, call=async_block)
        await subject.close()
        world.close()

    asyncio.run(run())
    tell(f"{database.name}, {kind}, block, {situation}, {way.__name__}: {said(figures)}")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["AsyncConnection", "AsyncSession"])
@WAYS
def test_a_callers_transaction_at_every_await(
    database: Database, kind: str, way: Way, tell: Tell
) -> None:
    """Up to its commit. On SQLite, SQLAlchemy may leave its lock to the garbage collector."""
    figures: Figures = Counter()

    async def run(verb: Verb) -> None:
        subject, world = Subject(database, "host", "async"), World(database, verb)
        subject.patience = 10

        async def call(manager: Any, job: Execution) -> None:
            if kind == "AsyncConnection":
                async with subject.host.begin() as connection:
                    await verb.call(manager.within(connection), job)
            else:
                async with AsyncSession(subject.host) as session, session.begin():
                    await verb.call(manager.within(session), job)

        options: Any = {"call": call, "abandons": True}
        await at_every_await(subject, world, lambda n: {n: way}, figures, **options)
        await subject.close()
        world.close()

    for name in ("create with a key", "complete", "claim", "delete", "a refusal"):
        asyncio.run(run(VERBS[name]))
    tell(f"{database.name}, within {kind}, {way.__name__}: {said(figures)}")


@KINDS
def test_a_write_that_waits_for_a_lock_is_not_made(postgres_database: Database, kind: str) -> None:
    """On PostgreSQL; SQLite's driver cannot be told to stop waiting."""
    database = postgres_database
    database.run("TRUNCATE executions CASCADE")

    async def run(verb: Verb) -> None:
        subject, world = Subject(database, kind, "async"), World(database, verb)
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

    for verb in VERBS.values():
        if verb.writes:
            asyncio.run(asyncio.wait_for(run(verb), 60))


def test_a_write_in_two_steps_is_noticed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = AsyncSqlExecutionStore.update

    async def in_two_steps(store: Any, id: str, _: Transition) -> Any:
        await at_once(store, id, transitions.update_progress(1, 2, None, None, None))
        return await at_once(store, id, transitions.checkpoint("k", 2, None))

    async def run() -> None:
        subject, world = Subject(database, "own", "async"), World(database, VERBS["advance"])
        with closing(world), pytest.raises(AssertionError, match="in between"):
            await at_every_await(subject, world, lambda n: {n: cancel_late}, Counter())
        await subject.close()

    monkeypatch.setattr(AsyncSqlExecutionStore, "update", in_two_steps)
    asyncio.run(run())


def test_a_connection_that_is_kept_is_noticed(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL, where a cancelled call drops its own."""
    database, kept = postgres_database, list[Any]()
    database.run("TRUNCATE executions CASCADE")

    async def run() -> None:
        subject, world = Subject(database, "own", "async"), World(database, VERBS["advance"])
        with closing(world), pytest.raises(AssertionError, match="of which are known"):
            await at_every_await(subject, world, lambda n: {n: cancel_late}, Counter())
        monkeypatch.undo()
        for pooled in kept:
            await greenlet_spawn(async_executor._drop, pooled, Exception())
        await subject.close()

    monkeypatch.setattr(injection, "PATIENCE", 1)
    monkeypatch.setattr(async_executor, "_drop", lambda pooled, _: kept.append(pooled))
    asyncio.run(run())
