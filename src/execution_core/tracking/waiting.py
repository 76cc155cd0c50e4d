"""Wait until executions have finished: one call of the store asks for all that wait in a process.

One of the callers that wait, the leader, asks for all of them. The others sleep until it wakes
them, and one of them takes its place when it leaves or is silent. Nothing is locked, because a
signal handler might raise while a lock is held: two leaders at once only ask twice.
"""

import asyncio
import os
import random
from collections.abc import Callable, Hashable
from contextlib import suppress
from datetime import timedelta
from math import inf
from operator import attrgetter
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final
from weakref import WeakValueDictionary, ref

from ..core.selections import Page, check_bounds, check_selection
from ..core.state_machine import LIVE
from ..core.steps import Steps

MAX_BATCH: Final = 1_000
"""How many ids one call asks for."""
MIN_PAUSE, MAX_PAUSE, JITTER = 0.02, 1.0, 0.2
"""Seconds between two calls for the same execution, and the random part of it."""
MAX_SILENCE: Final = 5.0
"""Seconds after which another waiter takes the place of a leader that does nothing."""


class Waiter:
    """A caller that waits for an execution, or for its children."""

    # Defined for threads and for tasks.
    owner: Callable[[], Hashable]
    """Return what waiters must have in common for one of them to ask for the others."""
    new_signal: Callable[[], Any]
    wake: Callable[[], None]
    """Let `sleep` return."""
    sleep: Callable[[float], Any]
    """Sleep until `wake` is called, or for some seconds at most."""

    due = 0.0
    is_over = False
    """Whether nothing was unfinished when the store was last asked, or the call failed."""
    failure: tuple[Exception, Any] | None = None
    """The error of the call, and its traceback."""

    def __init__(self, id: str, timeout: timedelta | None, *, children: bool = False) -> None:
        self.id, self.children = id, children
        self.seconds = inf if timeout is None else timeout.total_seconds()
        self.began = monotonic()
        self.deadline = self.began + self.seconds
        self.signal = self.new_signal()

    def pause(self, now: float) -> float:
        """Return the seconds until the next call, before jitter: longer after a longer wait."""
        return min(MAX_PAUSE, max(MIN_PAUSE, (now - self.began) / 2))


class ThreadWaiter(Waiter):
    """A thread that waits."""

    owner = staticmethod(os.getpid)  # the threads that wait do not exist in a forked process
    new_signal = SimpleQueue

    def wake(self) -> None:  # noqa: D102
        self.signal.put(None)

    def sleep(self, seconds: float) -> None:  # noqa: D102
        with suppress(Empty):
            self.signal.get(timeout=max(0.0, seconds))


class TaskWaiter(Waiter):
    """A task that waits."""

    owner = staticmethod(asyncio.get_running_loop)
    new_signal = asyncio.Event

    def wake(self) -> None:  # noqa: D102
        self.signal.set()

    async def sleep(self, seconds: float) -> None:  # noqa: D102
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.signal.wait()
        self.signal.clear()


_schedules: Final = WeakValueDictionary[tuple[int, Hashable], "WaitSchedule"]()
"""The schedules in use, by the id of the store and the owner of the waiters."""


class WaitSchedule:
    """All that wait for executions of one store, in a process or an event loop."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._all = set[ref[Waiter]]()
        self._leader: Waiter | None = None
        self._heard = self._asked = 0.0  # when the leader did something, and last asked the store

    def wait_steps(self, waiter: Waiter) -> Steps[None]:
        """Wait until nothing is unfinished that a waiter waits for, or its deadline has passed."""
        waiter.is_over, waiter.due = False, self._asked + MIN_PAUSE
        self._all.add(ref(waiter, self._all.discard))
        if self._leader is not None:
            self._leader.wake()  # it may sleep until a later time
        try:
            while not waiter.is_over and (now := monotonic()) < waiter.deadline:
                if not self._leads(waiter, now):
                    seconds = min(MAX_SILENCE, waiter.deadline - now)
                elif batch := self._take_due(now):
                    yield from self._ask_steps(batch)
                    continue
                else:
                    first = min(self._alive(), key=attrgetter("due"), default=waiter)
                    seconds = min(first.due, waiter.deadline) - now
                yield lambda: waiter.sleep(seconds)  # noqa: B023 - called at once
        finally:
            self._leave(waiter)
        if waiter.failure is not None:
            error, traceback = waiter.failure
            waiter.failure = None
            try:
                raise error.with_traceback(traceback)  # without the frames of other waiters
            finally:
                # Otherwise the frame and the error refer to each other: a connection that the call
                # has lost would stay open until the next collection of cycles.
                del error, traceback

    def find_steps(self, ids: list[str], *, children: bool) -> Steps[set[str]]:
        """Return those of the ids that are live, or that have a live child."""
        if hasattr(self._store, "find_unfinished"):
            return set((yield lambda: self._store.find_unfinished(ids, children=children)))
        unfinished = set[str]()
        for id in ids:
            if children:
                selected = check_selection(parent_id=id, status=LIVE)
                page = Page(**selected, **check_bounds(1, None, None, oldest_first=True))
                live = yield lambda: self._store.list(page)  # noqa: B023 - called at once
            else:
                found = yield lambda: self._store.find_by_id(id)  # noqa: B023
                live = found and found.status in LIVE
            if live:
                unfinished.add(id)
        return unfinished

    def _ask_steps(self, batch: list[Waiter]) -> Steps[None]:
        """Ask the store for some waiters, and wake those whose wait is over."""
        try:
            ids = list({each.id for each in batch})
            unfinished = yield from self.find_steps(ids, children=batch[0].children)
        except Exception as error:  # noqa: BLE001 - raised by each of the waiters
            for each in batch:
                each.failure = (error, error.__traceback__)
            unfinished = set()
        self._heard = self._asked = now = monotonic()
        factor = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - not for security
        for each in batch:
            if each.id in unfinished:
                each.due = now + each.pause(now) * factor
            else:
                each.is_over = True
                self._all.discard(ref(each))
                each.wake()

    def _take_due(self, now: float) -> list[Waiter]:
        """Return for whom to ask now: if anyone is due, also those that are due soon."""
        waiting = sorted(self._alive(), key=attrgetter("due"))
        if not waiting or waiting[0].due > now:
            return []
        kind = waiting[0].children
        soon = (each for each in waiting if each.due - now <= each.pause(now) / 2)
        return [each for each in soon if each.children == kind][:MAX_BATCH]

    def _leads(self, waiter: Waiter, now: float) -> bool:
        if self._leader is None or now > self._heard + MAX_SILENCE:
            self._leader = waiter
        if self._leader is not waiter:
            return False
        self._heard = now
        return True

    def _leave(self, waiter: Waiter) -> None:
        self._all.discard(ref(waiter))
        if self._leader is waiter or self._leader is None:
            self._leader = None  # before `_alive`: who begins to wait after that leads
            for other in self._alive()[:1]:
                self._leader, self._heard = other, monotonic()
                other.wake()

    def _alive(self) -> list[Waiter]:
        """Return the waiters; a signal handler that raised may have left one to be collected."""
        return [each for each in (known() for known in list(self._all)) if each is not None]


def schedule_of(store: Any, owner: Hashable) -> WaitSchedule:
    """Return the schedule of a store for the waiters of one owner; two threads may create two."""
    if getattr(store, "shares_connection", False):  # perhaps with the callers of one thread alone
        return WaitSchedule(store)
    return _schedules.setdefault((id(store), owner), WaitSchedule(store))
