"""One thread, or one timer of an event loop, sends the heartbeats of all attempts of a store."""

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest

from execution_core import AttemptLost, ExecutionManager, connect
from execution_core.tracking import threads

from ..conftest import Database
from ..support.heartbeats import EVERY, Key, heartbeat_threads, record_calls
from ..support.waiting import wait_until


@pytest.fixture
def until(mode: str, runner: asyncio.Runner) -> Callable[[Callable[[], Any]], Any]:
    """A function that waits for a condition, while heartbeats are sent."""

    def pause() -> bool:
        time.sleep(0.005) if mode == "sync" else runner.run(asyncio.sleep(0.005))
        return True

    return lambda condition: wait_until(lambda: pause() and condition(), interval=0)


def test_heartbeats_of_all_attempts_are_one_call(
    manager: ExecutionManager, until: Callable[..., Any]
) -> None:
    """Also of those that begin at different times, and of started executions."""
    calls = record_calls(manager)
    for _ in range(10):
        manager.create("claimed")
    with ExitStack() as blocks:
        for each in manager.claim("claimed", limit=10):
            blocks.enter_context(manager.attempt(each, heartbeat=2 * EVERY))
        for _ in range(10):
            id = manager.create("a").id
            blocks.enter_context(manager.attempt(id, heartbeat=2 * EVERY))
            until(lambda: True)
        keys = {(each.id, 1) for each in manager.list(status="running")}
        assert len(keys) == 20
        until(lambda: calls[-3:] == [keys] * 3)


def test_heartbeats_of_two_managers_of_a_store_are_one_call(
    database: Database,
) -> None:
    with connect(database.url) as manager:
        calls, other = record_calls(manager), ExecutionManager(manager._store)
        first, second = manager.create("a").id, manager.create("a").id
        with manager.attempt(first, heartbeat=EVERY), other.attempt(second, heartbeat=EVERY):
            assert len(heartbeat_threads()) == 1
            wait_until(lambda: {(first, 1), (second, 1)} in calls)


def test_heartbeats_of_two_stores_are_apart(database: Database) -> None:
    with connect(database.url) as manager, connect(database.url) as other:
        calls = [record_calls(manager), record_calls(other)]
        jobs = [manager.create("a").id for _ in calls]
        with manager.attempt(jobs[0], heartbeat=EVERY), other.attempt(jobs[1], heartbeat=EVERY):
            assert len(heartbeat_threads()) == 2
            wait_until(lambda: all(calls))
    for each, id in zip(calls, jobs, strict=True):
        assert set[Key]().union(*each) == {(id, 1)}


def test_heartbeat_of_lost_attempt_ends_alone(
    manager: ExecutionManager, until: Callable[..., Any]
) -> None:
    calls, jobs = record_calls(manager), [manager.create("a", max_attempts=2) for _ in range(3)]
    lost, *sound = [(each.id, 1) for each in jobs]
    with ExitStack() as blocks:
        blocks.enter_context(pytest.raises(AttemptLost))
        for each in jobs:
            blocks.enter_context(manager.attempt(each.id, heartbeat=EVERY))
        until(lambda: {lost, *sound} in calls)
        manager.timeout(jobs[0].id)
        manager.retry(jobs[0].id)
        manager.start(jobs[0].id)  # another worker's attempt
        taken = manager.get(jobs[0].id)
        until(lambda: {*sound} in calls)
        begun = len(calls)
        until(lambda: len(calls) > begun + 3)
        assert calls[begun:] == [{*sound}] * len(calls[begun:])
        assert manager.get(jobs[0].id) == taken
        manager.complete(jobs[0].id)
    assert {each.status for each in manager.list()} == {"completed"}


def test_heartbeat_of_left_block_is_not_sent(
    manager: ExecutionManager, until: Callable[..., Any]
) -> None:
    calls = record_calls(manager)
    with manager.attempt(manager.create("a").id, heartbeat=EVERY) as outer:
        with manager.attempt(manager.create("a").id, heartbeat=EVERY) as inner:
            until(lambda: len(calls[-1]) == 2 if calls else False)
        begun = len(calls)
        until(lambda: len(calls) > begun + 3)
        assert calls[begun:] == [{(outer.execution.id, 1)}] * len(calls[begun:])
    assert inner.execution.id != outer.execution.id
    begun = len(calls)
    until(lambda: True)
    assert len(calls) == begun


def test_heartbeat_of_abandoned_attempt_ends(
    manager: ExecutionManager, until: Callable[..., Any]
) -> None:
    """A block that is never left, such as one that a signal handler has interrupted."""
    calls, id = record_calls(manager), manager.create("a").id
    attempt = manager.attempt(id, heartbeat=EVERY)
    attempt.__enter__()
    until(lambda: calls)
    del attempt
    gc.collect()
    wait_until(lambda: not heartbeat_threads())
    until(lambda: True)
    begun = len(calls)
    until(lambda: True)
    assert len(calls) == begun
    assert manager.get(id).status == "running"


def test_heartbeat_thread_of_abandoned_attempt_is_ended_without_python_code(
    database: Database,
) -> None:
    """A signal handler that raises in such code would leave the thread running for ever."""
    called: list[str] = []
    with connect(database.url) as manager:
        calls = record_calls(manager)
        attempt = manager.attempt(manager.create("a").id, heartbeat=timedelta(seconds=0.5))
        attempt.__enter__()
        wait_until(lambda: calls)
        time.sleep(0.1)  # until the thread waits again
        sys.setprofile(lambda frame, *_: called.append(frame.f_code.co_filename))
        try:
            del attempt
            gc.collect()
        finally:
            sys.setprofile(None)
        wait_until(lambda: not heartbeat_threads())
    assert threads.__file__ not in called


def test_exit_waits_for_the_call_that_sends_its_heartbeat_alone(database: Database) -> None:
    """A call under way delays only the blocks whose heartbeats it sends."""
    with connect(database.url) as manager, ThreadPoolExecutor(2) as pool:
        store: Any = manager._store
        begun, may_end, heartbeat_many = threading.Event(), threading.Event(), store.heartbeat_many

        def wait(attempts: list[Key]) -> Any:
            begun.set()
            assert may_end.wait(30)
            return heartbeat_many(attempts)

        store.heartbeat_many = wait
        with ExitStack() as block:
            block.enter_context(manager.attempt(manager.create("a").id, heartbeat=EVERY))
            assert begun.wait(30)
            other = manager.attempt(manager.create("a").id, heartbeat=EVERY)
            pool.submit(other.__enter__).result(30)
            pool.submit(other.__exit__, None, None, None).result(30)
            leaving = pool.submit(block.pop_all().close)
            time.sleep(0.05)
            assert not leaving.done()
            may_end.set()
            leaving.result(30)
        wait_until(lambda: not heartbeat_threads())


def hang_heartbeats(store: Any, bad: str, mode: str) -> tuple[list[str], Any]:
    """Let calls with a heartbeat of an execution fail, and calls with that one alone hang.

    Return the calls that hang, and an event that ends them.
    """
    hanging, update = list[str](), store.update
    many: Any = getattr(store, "heartbeat_many", None)
    may_end: Any = threading.Event() if mode == "sync" else asyncio.Event()

    def hangs(id: str, transition: Any) -> bool:
        if id == bad and transition.rule.verb == "heartbeat":
            hanging.append(id)
        return bool(hanging) and id == bad

    def hang(id: str, transition: Any, **options: Any) -> Any:
        assert not hangs(id, transition) or may_end.wait(30)
        return update(id, transition, **options)

    async def hang_async(id: str, transition: Any, **options: Any) -> Any:
        assert not hangs(id, transition) or await may_end.wait()
        return await update(id, transition, **options)

    def refuse(attempts: list[Key]) -> Any:
        if bad in dict(attempts):
            raise ValueError(bad)
        return many(attempts)

    store.update = hang if mode == "sync" else hang_async
    if many:
        store.heartbeat_many = refuse
    return hanging, may_end


def test_heartbeat_call_that_hangs_stops_no_other(
    any_manager: ExecutionManager, mode: str, until: Callable[..., Any]
) -> None:
    """Neither that of a bad row, nor any of a store without `heartbeat_many`."""
    store: Any = getattr(any_manager, "target", any_manager)._store
    bad, *sound = [any_manager.create("a").id for _ in range(3)]
    hanging, may_end = hang_heartbeats(store, bad, mode)
    with ExitStack() as blocks:
        for id in (bad, *sound):
            blocks.enter_context(any_manager.attempt(id, heartbeat=EVERY))
        blocks.callback(may_end.set)
        until(lambda: hanging)
        for _ in range(3):
            before = {id: any_manager.get(id) for id in sound}
            until(lambda: all(any_manager.get(id) != before[id] for id in sound))  # noqa: B023
        assert hanging == [bad]
    assert {any_manager.get(id).status for id in (bad, *sound)} == {"completed"}
