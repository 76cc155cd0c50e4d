"""A cancellation at every await of every verb: the pool is whole, and the row is before or after.

On engines of both kinds that go the fast way: the library's own, and a host's.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg.waiting
import pytest

from execution_core import Execution
from execution_core.sql import async_direct, direct

from .conftest import Database
from .injection import VERBS, BlockWorld, Call, Subject, Verb, World, collect_garbage, in_time
from .interruptions import Awaits, Way, cancel_at_once, cancel_late

Figures = Counter[str]
Tell = Callable[[str], None]


@pytest.fixture(autouse=True)
def pools_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call needs the connection of the one that was interrupted, and its place."""
    for module in (direct, async_direct):
        monkeypatch.setattr(module, "OWN_POOL", 1)
    # psycopg then awaits wherever it may: else it does so only when the loop has been busy.
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0, raising=False)


async def at_every_await(
    subject: Subject,
    world: World,
    ways: Callable[[int], dict[int, Way]],
    figures: Figures,
    *,
    ready: Callable[[], Any] | None = None,
    call: Call | None = None,
) -> None:
    """Make a call over and over, each time interrupted at the next await."""
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
        told = isinstance(end, asyncio.CancelledError)
        assert told or not awaits.interrupted, f"{end!r} at await {n}"
        end = None  # and what it holds
        if ready:
            collect_garbage()
        subject.assert_free()
        figures[world.end()] += 1
    figures["awaits"] += last
    await make_ready()


def said(figures: Figures) -> str:
    return ", ".join(f"{n} {end}" for end, n in sorted(figures.items()))


KINDS = pytest.mark.parametrize("kind", ["own", "host"])
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
            for pid in subject.backends():
                database.rows("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)

        await at_every_await(subject, world, lambda n: {n: way}, figures, ready=sever)
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
