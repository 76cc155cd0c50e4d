"""A signal handler raises at any call: the pool stays complete, and the row is before or after.

`make test` tries a few moments; `make test-all` tries `complete` at all moments and every other
verb at some; `make proof` tries every verb at every moment.
"""

import asyncio
import gc
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

from execution_core import Execution, ExecutionProblem, connect
from execution_core.core.steps import run
from execution_core.sql.driver import async_executor, connection_cache, executor
from execution_core.sql.driver.executor import CachingExecutor, Executor
from execution_core.tracking.attempt import Attempt
from execution_core.tracking.attempt_state import AttemptState

from ..conftest import Database
from ..support.injection import (
    AttemptScenario,
    Figures,
    ManagerHarness,
    Scenario,
    Tell,
    freeze_garbage,
    summary,
    wait_until,
)
from ..support.interruptions import AwaitInterrupter, Interrupt
from ..support.sampling import WHOLE
from ..support.signals import (
    SIGNALS,
    Interruption,
    SignalAtCall,
    SignallingSelector,
    SignalTrial,
    raise_on_signals,
    time_limit,
)
from ..support.verbs import VERBS, Call, Verb
from .every_await import KINDS, async_block, at_every_await, verbs_of

PROOF = "EXECUTION_CORE_PROOF" in os.environ

UNMASKED = (signal.SIGINT, signal.SIGUSR1)
"""Signals whose handlers raise a BaseException, which no code catches by mistake."""


def choose_step(whole: int, quick: int) -> int:
    """Return the distance of the moments that are tried."""
    return 1 if PROOF else whole if WHOLE else quick


@pytest.fixture(autouse=True)
def signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (
        executor,
        async_executor,
    ):  # with a pool of one, the next call needs the permit of the interrupted call
        monkeypatch.setattr(module, "OWN_POOL", 1)
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0, raising=False)
    logging.disable()  # log records that pytest keeps would keep connections alive
    with freeze_garbage(), raise_on_signals():
        yield
    logging.disable(logging.NOTSET)


ROWS = {
    "own": partial(SignalAtCall, CachingExecutor.rows.__code__),
    "host": partial(SignalAtCall, Executor.rows.__code__),
}


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect what a test abandons within it: a warning would fail a later test."""
    yield
    gc.collect()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["own", "host"])
def test_signal_verb_at_every_call_row_is_before_or_after(
    database: Database, kind: str, tell: Tell
) -> None:
    """From the checkout of a connection to its return.

    On the engine of a host a signal inside the pool of SQLAlchemy may cost the pool a connection.
    """
    figures: Figures = Counter()
    verbs = {"complete": VERBS["complete"]}
    verbs |= VERBS if PROOF or WHOLE else dict(list(VERBS.items())[kind == "host" :: 2])
    for number, (name, verb) in enumerate(verbs.items()):
        with closing(
            SignalTrial(
                ManagerHarness(database, kind, "sync"), Scenario(database, verb), ROWS[kind]
            )
        ) as trial:
            all_moments = (1, 24) if kind == "own" else (3, 72)
            steps = all_moments if name == "complete" else (50, 300)
            first = (37 * number) % trial.last  # another moment for each verb
            trial.at_every(choose_step(*steps), first=first)
            figures += trial.figures
    tell(f"{database.name}, {kind}, signals: {len(verbs)} verbs, {summary(figures)}")


class CountingPermits:
    """Permits as a semaphore counts them, which a signal can lose."""

    def __init__(self) -> None:
        self._semaphore = threading.Semaphore(0)

    def get(self, timeout: float) -> None:
        if not self._semaphore.acquire(timeout=timeout):
            raise Empty

    def put(self, _: None) -> None:
        self._semaphore.release()


@pytest.mark.slow
def test_signal_check_detects_lost_permits(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_cache, "SimpleQueue", CountingPermits)
    monkeypatch.setattr(connection_cache, "Permit", lambda _: None)
    subject, world = ManagerHarness(database, "own", "sync"), Scenario(database, VERBS["complete"])
    with closing(SignalTrial(subject, world, ROWS["own"])) as trial:
        trial.call_timeout = 1
        with pytest.raises(TimeoutError):
            trial.at_every(1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_signal_while_connecting_pool_stays_complete(database: Database, tell: Tell) -> None:
    """An unfinished connection is left to the garbage collector; its permit is not lost."""
    subject, world = ManagerHarness(database, "own", "sync"), Scenario(database, VERBS["complete"])
    with closing(SignalTrial(subject, world, ROWS["own"])) as trial:
        trial.abandons = trial.connects = True
        trial.again()
        trial.at_every(choose_step(17, 85))
    tell(f"{database.name}, own, signals while it connects: {summary(trial.figures)}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::sqlalchemy.exc.SAWarning")
def test_signal_host_transaction_at_every_call_row_is_before_or_after(
    database: Database, tell: Tell
) -> None:
    """Up to the commit. SQLAlchemy may leave its connection to the garbage collector."""
    figures: Figures = Counter()
    for name in ("create with a key", "complete", "claim"):
        verb, subject = VERBS[name], ManagerHarness(database, "host", "sync")

        def call(manager: Any, job: Execution, verb: Verb = verb) -> None:
            try:
                with Session(manager._store._bind.engine) as session, session.begin():
                    verb.call(manager.within(session), job)
            except AssertionError as error:  # SQLAlchemy raises it for an interrupted commit
                raise (error.__context__ or error) from None

        calls = partial(SignalAtCall, call.__code__)
        with closing(SignalTrial(subject, Scenario(database, verb), calls, call)) as trial:
            trial.abandons = True
            trial.at_every(choose_step(31, 155), numbers=UNMASKED)
            figures += trial.figures
    tell(f"{database.name}, within Session, signals: {summary(figures)}")


HEARTBEAT = timedelta(milliseconds=20)


def block(manager: Any, job: Execution) -> None:
    given = job if job.status == "running" else job.id
    with manager.attempt(given, heartbeat=HEARTBEAT) as attempt:
        for _ in attempt.each("ab"):
            pass
        attempt.log("half way")
        attempt.result = 7


def attempt_threads() -> list[str]:
    names = [each.name for each in threading.enumerate()]
    return [name for name in names if name.startswith(("heartbeats", "log-"))]


def block_calls() -> SignalAtCall:
    calls = SignalAtCall(block.__code__, folder="/execution_core/")
    calls.events.remove("return")  # no signal comes between the return of __enter__ and the block
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("state", ["pending", "running"])
def test_signal_attempt_block_at_every_call_end_is_recorded(
    database: Database, state: str, tell: Tell
) -> None:
    """Only a signal in the starting statement, or at the last moment, may leave it running."""
    figures: Figures = Counter()
    subject, world = (
        ManagerHarness(database, "own", "sync"),
        AttemptScenario(database, Verb(state, block)),
    )
    subject.max_connections = 15  # the heartbeat may need one before a lost connection has closed
    with closing(SignalTrial(subject, world, block_calls)) as trial:
        step = choose_step(1 if database.name == "sqlite" else 5, 29)
        for n in range(1, trial.last + 1, step):
            calls = trial.signalled(n, UNMASKED[n % 2])
            wait_until(lambda: not attempt_threads(), attempt_threads)  # they end in every case
            figures[end := world.end()] += 1
            if end == "running":
                enter, last = Attempt.__enter__.__code__, Attempt.__exit__.__code__
                unowned = AttemptState._enter_steps.__code__  # the answer is not stored yet
                assert (
                    calls.arrived_within("StoreMethods.update")
                    or calls.stack[0] in (unowned, last)
                    or calls.stack[:2] == [run.__code__, enter]
                ), calls.stack
    tell(f"{database.name}, own, signals: a block that was {state}, {summary(figures)}")


@pytest.mark.slow
def test_signal_attempt_block_at_every_call_heartbeats_of_others_continue(
    database: Database,
) -> None:
    """And those of the interrupted block end."""
    with connect(database.url) as manager:
        sent, store = list[set[str]](), manager._store
        heartbeat_many = store.heartbeat_many

        def recorded(attempts: list[tuple[str, int]]) -> Any:
            sent.append({id for id, _ in attempts})
            return heartbeat_many(attempts)

        store.heartbeat_many = recorded
        other, moments = manager.create("other").id, 1
        with manager.attempt(other, heartbeat=HEARTBEAT):
            while True:
                job = manager.create("a", max_attempts=2)
                calls = block_calls()
                calls.at, calls.number = moments, signal.SIGUSR1
                with suppress(Interruption), time_limit(20), calls:
                    block(manager, job)
                if not calls.stack:
                    break
                begun = len(sent)
                wait_until(lambda: len(sent) > begun + 1, lambda: calls.stack)  # noqa: B023
                wait_until(lambda: sent[-1] == {other}, lambda: calls.stack)  # noqa: B023
                moments += choose_step(7, 41)
        assert manager.get(other).status == "completed"
        assert moments > 200


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("kind", ["own", "host"])
def test_signal_statement_waiting_for_lock_raises_at_once(
    postgres_database: Database, kind: str, number: int
) -> None:
    """PostgreSQL only: the driver of SQLite handles signals after the wait."""
    database = postgres_database
    database.empty()
    subject, world = ManagerHarness(database, kind, "sync"), Scenario(database, VERBS["complete"])
    subject.manager.list()
    me = threading.get_ident()

    def send() -> None:
        wait_until(
            lambda: bool(subject.backends(waiting_for="Lock")),
            lambda: "no backend waits for the lock",
        )
        signal.pthread_kill(me, number)

    sender = threading.Thread(target=send)
    with database.engine.connect() as other:
        other.exec_driver_sql("LOCK TABLE executions IN EXCLUSIVE MODE")
        sender.start()
        with time_limit(20), pytest.raises(SIGNALS[number]):
            world.verb.call(subject.manager, world.target)
        sender.join()
    subject.assert_free()
    assert world.end() in ("before", "after")  # the server notices a closed connection late
    subject.manager.list()
    subject.close()
    world.close()


def raise_interruption(task: asyncio.Task[Any], awaited: Any) -> BaseException:
    return Interruption()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "host"])
def test_signal_verb_at_every_await_row_is_before_or_after(
    database: Database, kind: str, tell: Tell
) -> None:
    """The handler raises when a coroutine resumes, also while it returns a connection.

    Not with a listener: then SQLAlchemy may lose the connection.
    """
    figures: Figures = Counter()

    async def run(verb: Verb, first: int) -> None:
        subject, world = ManagerHarness(database, kind, "async"), Scenario(database, verb)
        ways: Any = lambda n: {n: raise_interruption}  # noqa: E731
        await at_every_await(subject, world, ways, figures, every=3, first=first)
        await subject.close()
        world.close()

    verbs = verbs_of(kind, kinds=2)
    for number, verb in enumerate(verbs):
        asyncio.run(run(verb, number))
    tell(f"{database.name}, {kind}, raised in a task: {len(verbs)} verbs, {summary(figures)}")


def raise_in_selector(selector: SignallingSelector) -> None:
    selector.number = signal.SIGUSR1


def press_ctrl_c(_: SignallingSelector) -> None:
    signal.raise_signal(signal.SIGINT)


async def call_interrupted(
    subject: ManagerHarness, world: Scenario, call: Call, n: int, way: Interrupt
) -> int:
    """Make a call, interrupt it at its n-th await, and return the number of its awaits."""
    try:
        for _ in range(2):
            await subject.manager.list()
        awaits = AwaitInterrupter()
        with suppress(ExecutionProblem):
            await awaits.run_here(call(subject.manager, world.target), {n: way})
        return awaits.seen
    finally:
        await subject.close()


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize(
    ("end", "error"), [(press_ctrl_c, KeyboardInterrupt), (raise_in_selector, Interruption)]
)
def test_signal_event_loop_ended_at_every_await_row_is_before_or_after(
    database: Database,
    kind: str,
    end: Callable[[SignallingSelector], None],
    error: type[BaseException],
    tell: Tell,
) -> None:
    """By Ctrl-C, which asyncio handles, or by a handler that raises while the loop waits."""
    figures: Figures = Counter()

    def run_and_end(subject: ManagerHarness, world: Scenario, call: Call, n: int = 0) -> int:
        selector = SignallingSelector()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            return runner.run(call_interrupted(subject, world, call, n, lambda *_: end(selector)))

    def at_every_await_of(call: Call, world: Scenario) -> None:
        last = run_and_end(ManagerHarness(database, kind, "async"), world, call)
        for n in range(1, last + 1, choose_step(1, 3)):
            world.end()
            subject = ManagerHarness(database, kind, "async")
            with pytest.raises(error):
                run_and_end(subject, world, call, n)
            subject.assert_free()
            figures[world.end()] += 1
        world.close()

    signal.signal(signal.SIGINT, signal.default_int_handler)  # which asyncio requires to handle it
    verbs = VERBS if PROOF else ("create", "complete", "claim", "a refusal")
    for name in verbs:
        at_every_await_of(VERBS[name].call, Scenario(database, VERBS[name]))
    at_every_await_of(async_block, AttemptScenario(database, Verb("pending", block)))
    tell(
        f"{database.name}, {kind}, {end.__name__}: {len(verbs)} verbs and a block,"
        f" {summary(figures)}"
    )
