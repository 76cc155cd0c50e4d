# ruff: noqa: S101 - asserts are what a contract is made of
"""A store under test, in whatever mode, and what its scenarios need."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import BaseModel

from ..core.creation import NewExecution, new_execution
from ..core.json_values import MAX_JSON_BYTES
from ..core.models import Execution
from ..core.transitions import Transition
from ..tracking.async_manager import AsyncExecutionManager
from ..tracking.manager import ExecutionManager

if TYPE_CHECKING:
    from ..core.store import ExecutionStore

CONCURRENCY: Final = 8
"""How many callers there are at once."""
CLOCK_TIMEOUT: Final = 10.0
"""Seconds in which a store's clock has to move."""


@dataclass(frozen=True)
class StoreAndManager:
    """One of two stores over the same data, and a manager over it, in the store's own mode."""

    store: Any
    manager: Any


class StoreHarness:
    """What a contract is about: `subject.store.find_by_id(id)` waits for its answer, if it must."""

    def __init__(self, store: Any, other_store: Any, runner: asyncio.Runner | None) -> None:
        self._runner = runner
        manager = ExecutionManager if runner is None else AsyncExecutionManager
        self._sides = [StoreAndManager(each, manager(each)) for each in (store, other_store)]
        self.store, self.other = (
            store if runner is None else cast("ExecutionStore", _Blocking(store, runner))
            for store in (store, other_store)
        )
        self.manager = ExecutionManager(self.store)

    def race(self, calls: Sequence[Callable[[StoreAndManager], Any]]) -> list[Any]:
        """Make calls, several at once and over both stores: `race([lambda side: ...])`.

        Returns:
            Their answers, in the order of the calls.
        """
        sides = [self._sides[number % 2] for number in range(len(calls))]
        if self._runner is not None:
            return self._runner.run(_gather(calls, sides))
        with ThreadPoolExecutor(CONCURRENCY) as threads:
            return list(threads.map(lambda call, side: call(side), calls, sides))

    def create(self, **options: Any) -> Execution:
        """Store a new execution."""
        created = self.store.create(new(**options))
        assert created is not None, "a create with nothing in its way answered None"
        return created

    def moved(self, id: str, *transitions: Transition) -> Execution:
        """Make transitions, all of them allowed; return the execution as it stands afterwards."""
        for transition in transitions:
            assert self.store.update(id, transition) is not None, (
                f"a {transition.rule.verb} that is allowed answered None"
            )
        return self.found(id)

    def found(self, id: str) -> Execution:
        """Read an execution that is there."""
        found = self.store.find_by_id(id)
        assert found is not None, f"execution {id} is not found"
        return found

    def now(self) -> datetime:
        """Return what time it is to the store."""
        probe = self.create(type="clock")
        self.store.delete(probe.id)
        return probe.created_at

    def later(self, than: datetime) -> datetime:
        """Wait until the store's clock has moved on by more than its unit; return its time."""
        limit = time.monotonic() + CLOCK_TIMEOUT
        while (now := self.now()) < than + timedelta(milliseconds=5):
            assert time.monotonic() < limit, f"the store's clock stands still: {now}"
            time.sleep(max(0.001, (than - now).total_seconds()))
        return now


class _Blocking:
    """An async store whose coroutines are run to their end."""

    def __init__(self, store: Any, runner: asyncio.Runner) -> None:
        self._store = store
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not callable(method):
            return method
        return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))


async def _gather(
    calls: Sequence[Callable[[StoreAndManager], Awaitable[Any]]], sides: list[StoreAndManager]
) -> Any:
    places = asyncio.Semaphore(CONCURRENCY)

    async def make(call: Callable[[StoreAndManager], Awaitable[Any]], side: StoreAndManager) -> Any:
        async with places:
            return await call(side)

    return await asyncio.gather(*map(make, calls, sides))


def new(type: str = "work", payload: object = None, **options: Any) -> NewExecution:
    """Return a creation; two attempts are allowed where nothing else is said."""
    usual: dict[str, Any] = {
        "max_attempts": 2,
        "timeout": None,
        "idempotency_key": None,
        "parent_id": None,
        "metadata": None,
        "start_after": None,
        "max_bytes": MAX_JSON_BYTES,
    }
    return new_execution(type, payload, **usual | options)


def call_store(method: str, *args: Any, **kwargs: Any) -> Callable[[StoreAndManager], Any]:
    """Return a call of a race: `ask("update", id, transition)`.

    What it asks for gives way to others between what a store reads and what it writes. Where
    nothing guards the time between, the race is then lost every time, not once in a thousand.
    """
    slowed = [_slow(arg) if hasattr(arg, "apply") else arg for arg in args]
    return lambda side: getattr(side.store, method)(*slowed, **kwargs)


def _slow(plan: Any) -> Any:
    kind = type(plan)

    def apply(self: Any, *args: Any) -> Any:
        answer = kind.apply(self, *args)
        time.sleep(0.001)
        return answer

    slowed = type(kind.__name__, (kind,), {"__slots__": (), "apply": apply})
    return slowed(*(getattr(plan, field.name) for field in fields(kind)))


def to_text(data: BaseModel | None) -> str | None:
    """Return data as a text that differs where they differ: `True`, `1` and `1.0` are three."""
    if data is None:
        return None
    return json.dumps(data.model_dump(mode="json"), sort_keys=True, indent=1)
