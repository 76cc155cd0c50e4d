# ruff: noqa: S101 - a contract consists of asserts
"""The harness of the contract: one interface for sync and async stores."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final

import pytest
from pydantic import BaseModel

from ..core.creation import NewExecution, new_execution
from ..core.json_values import MAX_JSON_BYTES
from ..core.models import Execution
from ..core.selections import PruneRequest, check_prune_request
from ..core.transitions import Transition
from ..tracking.async_manager import AsyncExecutionManager
from ..tracking.manager import ExecutionManager

CONCURRENCY: Final = 8
"""The number of concurrent callers."""
CLOCK_TIMEOUT: Final = 10.0
"""Seconds within which a store's clock has to advance."""


@dataclass(frozen=True)
class StoreAndManager:
    """One of two stores over the same data, and a manager over it: both sync or both async."""

    store: Any
    manager: Any


Call = Callable[[StoreAndManager], Any]
"""A call of a race."""


class StoreHarness:
    """Runs a sync or an async store as if it were sync: `harness.store.find_by_id(id)`."""

    def __init__(self, store: Any, other_store: Any, runner: asyncio.Runner | None) -> None:
        self._runner = runner
        manager = ExecutionManager if runner is None else AsyncExecutionManager
        self._sides = [StoreAndManager(each, manager(each)) for each in (store, other_store)]
        self.store, self.other = (
            store if runner is None else _Blocking(store, runner) for store in (store, other_store)
        )
        self.manager = ExecutionManager(self.store)

    def race(self, calls: Sequence[Call]) -> list[Any]:
        """Make concurrent calls, alternating between both stores; return the answers in order."""
        sides = [self._sides[number % 2] for number in range(len(calls))]
        if self._runner is not None:
            return self._runner.run(_gather(calls, sides))
        with ThreadPoolExecutor(CONCURRENCY) as threads:
            return list(threads.map(lambda call, side: call(side), calls, sides))

    def create(self, **options: Any) -> Execution:
        """Create an execution."""
        created: Execution | None = self.store.create(build_new(**options))
        assert created is not None, "an allowed create returned None"
        return created

    def apply(self, id: str, *transitions: Transition) -> Execution:
        """Apply transitions, all of them allowed; return the execution afterwards."""
        for transition in transitions:
            assert self.store.update(id, transition) is not None, (
                f"an allowed {transition.rule.verb} returned None"
            )
        return self.get(id)

    def get(self, id: str) -> Execution:
        """Return an existing execution."""
        found: Execution | None = self.store.find_by_id(id)
        assert found is not None, f"execution {id} is not found"
        return found

    def optional_method(self, name: str) -> Any:
        """Return an optional method of the store; skip the test if there is none."""
        if not hasattr(self.store, name):
            pytest.skip(f"the store has no {name}, which is optional")
        return getattr(self.store, name)

    def now(self) -> datetime:
        """Return the time of the store's clock."""
        probe = self.create(type="clock")
        self.store.delete(probe.id)
        return probe.created_at

    def wait_past(self, moment: datetime) -> datetime:
        """Wait until the store's clock is clearly after a time; return the clock's time."""
        limit = time.monotonic() + CLOCK_TIMEOUT
        while (now := self.now()) < moment + timedelta(milliseconds=5):
            assert time.monotonic() < limit, f"the store's clock does not advance: {now}"
            time.sleep(max(0.001, (moment - now).total_seconds()))
        return now


class _Blocking:
    """A sync view of an async store: it runs each coroutine to its end."""

    def __init__(self, store: Any, runner: asyncio.Runner) -> None:
        self._store = store
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not callable(method):
            return method
        return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))


async def _gather(calls: Sequence[Call], sides: list[StoreAndManager]) -> Any:
    limit = asyncio.Semaphore(CONCURRENCY)

    async def run(call: Call, side: StoreAndManager) -> Any:
        async with limit:
            return await call(side)

    return await asyncio.gather(*map(run, calls, sides))


def build_new(type: str = "work", payload: object = None, **options: Any) -> NewExecution:
    """Return a new execution for `store.create`; by default with two attempts."""
    unset = ("timeout", "idempotency_key", "parent_id", "metadata", "start_after")
    given: dict[str, Any] = {**dict.fromkeys(unset), "max_attempts": 2, **options}
    return new_execution(type, payload, max_bytes=MAX_JSON_BYTES, **given)


def build_prune(older_than: timedelta, **conditions: Any) -> PruneRequest:
    """Return a request for `store.prune`; by default for all executions of that age."""
    defaults = {"status": None, "type": None, "keys_older_than": None, "limit": 10_000}
    return check_prune_request(older_than, **defaults | conditions)


def call_store(method: str, *args: Any, **kwargs: Any) -> Call:
    """Return a call of a race: `call_store("update", id, transition)`.

    The `apply` of its argument sleeps, so that other calls run between the read and the write of
    a store. A store without a guard then loses the race every time, not once in a thousand times.
    """
    slowed = [_slow(arg) if hasattr(arg, "apply") else arg for arg in args]
    return lambda side: getattr(side.store, method)(*slowed, **kwargs)


def _slow(request: Any) -> Any:
    request_type = type(request)

    def apply(self: Any, *args: Any) -> Any:
        answer = request_type.apply(self, *args)
        time.sleep(0.001)
        return answer

    slowed = type(request_type.__name__, (request_type,), {"__slots__": (), "apply": apply})
    return slowed(*(getattr(request, field.name) for field in fields(request_type)))


def to_text(data: BaseModel | None) -> str | None:
    """Return data as text that is equal for equal data: `True`, `1` and `1.0` differ."""
    if data is None:
        return None
    return json.dumps(data.model_dump(mode="json"), sort_keys=True, indent=1)
