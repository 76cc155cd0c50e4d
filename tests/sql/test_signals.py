"""A signal at any call, whose handler raises: the pool is whole, and the row is before or after.

EXECUTION_CORE_PROOF=1 tries every verb at every moment; else each is tried at some, and `complete`
at all.
"""

import asyncio
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from queue import Empty
from typing import Any

import psycopg.waiting
import pytest
from sqlalchemy.orm import Session

from execution_core import Execution, ExecutionProblem
from execution_core.sql.driver import async_executor, connection_cache, executor
from execution_core.sql.driver.executor import CachingExecutor, Executor
from execution_core.tracking.attempt import Attempt

from ..conftest import Database
from ..support.injection import (
    BlockWorld,
    Figures,
    Subject,
    Tell,
    World,
    little_garbage,
    said,
    until,
)
from ..support.interruptions import Awaits, Way
from ..support.signals import SIGNALS, Calls, Interruption, Selector, Trial, in_seconds, raising
from ..support.verbs import VERBS, Call, Verb
from .test_injection import KINDS, async_block, at_every_await

PROOF = "EXECUTION_CORE_PROOF" in os.environ
UNMASKED = (signal.SIGINT, signal.SIGUSR1)
"""What raises no Exception, for which there are handlers everywhere."""


@pytest.fixture(autouse=True)
def signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (
        executor,
        async_executor,
    ):  # the next call needs the place of the interrupted one
        monkeypatch.setattr(module, "OWN_POOL", 1)
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0, raising=False)
    logging.disable()  # what pytest keeps of a log would keep a connection as well
    with little_garbage(), raising():
        yield
    logging.disable(logging.NOTSET)


ROWS = {
    "own": partial(Calls, CachingExecutor.rows.__code__),
    "host": partial(Calls, Executor.rows.__code__),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["own", "host"])
def test_every_verb_at_every_call(database: Database, kind: str, tell: Tell) -> None:
    """From when it asks for a connection until that is given back.

    The pool of a host's engine is SQLAlchemy's: a signal within it may cost it a place.
    """
    figures: Figures = Counter()
    for number, (name, verb) in enumerate(VERBS.items()):
        with closing(
            Trial(Subject(database, kind, "sync"), World(database, verb), ROWS[kind])
        ) as trial:
            few = {"complete": 1 if kind == "own" else 3}
            trial.at_every(1 if PROOF else few.get(name, 50), first=2 * number)
            figures += trial.figures
    tell(f"{database.name}, {kind}, signals: {len(VERBS)} verbs, {said(figures)}")


class Counted:
    """Permits that are counted, as a semaphore does it."""

    def __init__(self) -> None:
        self._semaphore = threading.Semaphore(0)

    def get(self, timeout: float) -> None:
        if not self._semaphore.acquire(timeout=timeout):
            raise Empty

    def put(self, _: None) -> None:
        self._semaphore.release()


def test_permits_that_are_counted_are_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_cache, "SimpleQueue", Counted)
    monkeypatch.setattr(connection_cache, "Permit", lambda _: None)
    subject, world = Subject(database, "own", "sync"), World(database, VERBS["complete"])
    with closing(Trial(subject, world, ROWS["own"])) as trial:
        trial.patience = 1
        with pytest.raises(TimeoutError):
            trial.at_every(1)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_while_it_connects(database: Database, tell: Tell) -> None:
    """A connection that was being made is left to the garbage collector; its place is not lost."""
    subject, world = Subject(database, "own", "sync"), World(database, VERBS["complete"])
    with closing(Trial(subject, world, ROWS["own"])) as trial:
        trial.abandons = trial.connects = True
        trial.again()
        trial.at_every(1 if PROOF else 17)
    tell(f"{database.name}, own, signals while it connects: {said(trial.figures)}")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::sqlalchemy.exc.SAWarning")
def test_a_callers_transaction_at_every_call(database: Database, tell: Tell) -> None:
    """Up to its commit. SQLAlchemy leaves what it is at to the garbage collector."""
    figures: Figures = Counter()
    for name in ("create with a key", "complete", "claim"):
        verb, subject = VERBS[name], Subject(database, "host", "sync")

        def call(manager: Any, job: Execution, verb: Verb = verb) -> None:
            try:
                with Session(manager._store._bind.engine) as session, session.begin():
                    verb.call(manager.within(session), job)
            except AssertionError as error:  # SQLAlchemy's, of a commit that was interrupted
                raise (error.__context__ or error) from None

        calls = partial(Calls, call.__code__)
        with closing(Trial(subject, World(database, verb), calls, call)) as trial:
            trial.abandons = True
            trial.at_every(1 if PROOF else 31, numbers=UNMASKED)
            figures += trial.figures
    tell(f"{database.name}, within Session, signals: {said(figures)}")


BEAT = timedelta(milliseconds=20)


def block(manager: Any, job: Execution) -> None:
    given = job if job.status == "running" else job.id
    with manager.attempt(given, heartbeat=BEAT) as attempt:
        for _ in attempt.each("ab"):
            pass
        attempt.log("half way")
        attempt.result = 7


def threads() -> list[str]:
    names = [each.name for each in threading.enumerate()]
    return [name for name in names if name.startswith(("heartbeat-", "log-"))]


def block_calls() -> Calls:
    calls = Calls(block.__code__, folder="/execution_core/")
    calls.events.remove("return")  # no signal comes between a function's return and its `with`
    return calls


@pytest.mark.parametrize("situation", ["pending", "running"])
def test_a_block_at_every_call(database: Database, situation: str, tell: Tell) -> None:
    """Only the statement that starts it may leave it running; or the very moment of its end."""
    figures: Figures = Counter()
    subject, world = Subject(database, "own", "sync"), BlockWorld(database, Verb(situation, block))
    subject.most = 15  # its heart may need one while the one that was lost is still there
    with closing(Trial(subject, world, block_calls)) as trial:
        for n in range(1, trial.last + 1, 1 if PROOF or database.name == "sqlite" else 5):
            calls = trial.signalled(n, UNMASKED[n % 2])
            until(lambda: not threads(), threads)  # also where it is left running
            figures[end := world.end()] += 1
            if end == "running":
                assert calls.came_within("SqlExecutionStore.update", "AttemptState._own") or (
                    calls.stack[0] is Attempt.__exit__.__code__
                ), calls.stack
    tell(f"{database.name}, own, signals: a block that was {situation}, {said(figures)}")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("kind", ["own", "host"])
def test_a_statement_that_waits_for_a_lock(
    postgres_database: Database, kind: str, number: int
) -> None:
    """On PostgreSQL, whose driver looks for signals; SQLite's looks when it has waited."""
    database = postgres_database
    database.run("TRUNCATE executions CASCADE")
    subject, world = Subject(database, kind, "sync"), World(database, VERBS["complete"])
    subject.manager.list()
    me = threading.get_ident()

    def send() -> None:
        until(lambda: bool(subject.backends(waiting_for="Lock")), lambda: "nobody waits")
        signal.pthread_kill(me, number)

    sender = threading.Thread(target=send)
    with database.engine.connect() as other:
        other.exec_driver_sql("LOCK TABLE executions IN EXCLUSIVE MODE")
        sender.start()
        with in_seconds(20), pytest.raises(SIGNALS[number]):
            world.verb.call(subject.manager, world.target)
        sender.join()
    subject.assert_free()
    assert world.end() in ("before", "after")  # a server finds out late that nobody listens
    subject.manager.list()
    subject.close()
    world.close()


def raise_there(task: asyncio.Task[Any], awaited: Any) -> BaseException:
    return Interruption()


@pytest.mark.parametrize("kind", ["own", "host"])
def test_every_verb_at_every_await(database: Database, kind: str, tell: Tell) -> None:
    """The handler raises as a coroutine goes on, be it one that gives a connection back.

    SQLAlchemy's own way, on an engine that is listened to, may lose it then.
    """
    figures: Figures = Counter()

    async def run(verb: Verb) -> None:
        subject, world = Subject(database, kind, "async"), World(database, verb)
        await at_every_await(subject, world, lambda n: {n: raise_there}, figures)
        await subject.close()
        world.close()

    for verb in VERBS.values():
        asyncio.run(run(verb))
    tell(f"{database.name}, {kind}, raised in a task: {len(VERBS)} verbs, {said(figures)}")


def end_in_the_selector(selector: Selector) -> None:
    selector.number = signal.SIGUSR1


def end_by_ctrl_c(_: Selector) -> None:
    signal.raise_signal(signal.SIGINT)


async def called(subject: Subject, world: World, call: Call, n: int, way: Way) -> int:
    """Make a call that is interrupted at one of its awaits; return how many those are."""
    try:
        for _ in range(2):
            await subject.manager.list()
        awaits = Awaits()
        with suppress(ExecutionProblem):
            await awaits.here(call(subject.manager, world.target), {n: way})
        return awaits.seen
    finally:
        await subject.close()


@KINDS
@pytest.mark.parametrize(
    ("end", "error"), [(end_by_ctrl_c, KeyboardInterrupt), (end_in_the_selector, Interruption)]
)
def test_a_loop_that_is_ended_at_every_await(
    database: Database,
    kind: str,
    end: Callable[[Selector], None],
    error: type[BaseException],
    tell: Tell,
) -> None:
    """By Ctrl-C, which asyncio takes, or by a handler that raises while the loop waits."""
    figures: Figures = Counter()

    def ended(subject: Subject, world: World, call: Call, n: int = 0) -> int:
        selector = Selector()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            return runner.run(called(subject, world, call, n, lambda *_: end(selector)))

    def at_every_await_of(call: Call, world: World) -> None:
        for n in range(1, ended(Subject(database, kind, "async"), world, call) + 1):
            world.end()
            subject = Subject(database, kind, "async")
            with pytest.raises(error):
                ended(subject, world, call, n)
            subject.assert_free()
            figures[world.end()] += 1
        world.close()

    signal.signal(signal.SIGINT, signal.default_int_handler)  # or asyncio leaves it alone
    verbs = VERBS if PROOF else ("create", "complete", "claim", "a refusal")
    for name in verbs:
        at_every_await_of(VERBS[name].call, World(database, VERBS[name]))
    at_every_await_of(async_block, BlockWorld(database, Verb("pending", block)))
    tell(
        f"{database.name}, {kind}, {end.__name__}: {len(verbs)} verbs and a block, {said(figures)}"
    )
