"""The manager for asyncio: the twin of `manager`, verb for verb."""

import builtins
from collections.abc import Callable, Coroutine, Iterable
from copy import copy
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from ..core import log_lines, transitions, validation
from ..core.backoff import Backoff
from ..core.creation import MAX_TRIES, check_same_work, new_execution, new_replay
from ..core.errors import ConcurrentUpdate, ExecutionNotFound
from ..core.json_values import MAX_JSON_BYTES
from ..core.models import Execution, ExecutionFailure, ExecutionStatus, LogEntry, LogLevel
from ..core.selections import check_batch, check_page, check_prune_request
from ..core.store import AsyncExecutionStore, store_within
from ..core.transitions import Transition
from ..core.validation import MAX_INTEGER
from .async_attempt import AsyncAttempt
from .async_decorator import tracked
from .attempt_options import Exceptions, check_options
from .decorator import TrackedOptions

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

P = ParamSpec("P")
R = TypeVar("R")


class AsyncExecutionManager:
    """`ExecutionManager` for asyncio: `AsyncExecutionManager(AsyncSqlExecutionStore(engine))`.

    Each verb takes, returns and raises what the verb of the same name takes, returns and raises
    there. Tasks may share one.
    """

    def __init__(self, store: AsyncExecutionStore, *, max_json_bytes: int = MAX_JSON_BYTES) -> None:
        self._store = store
        self._max_bytes = validation.integer("max_json_bytes", max_json_bytes, 1, MAX_INTEGER)
        self._joined = False

    async def create(
        self,
        type: str,
        payload: Any = None,
        *,
        max_attempts: int = 1,
        timeout: timedelta | None = None,
        idempotency_key: str | None = None,
        parent_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        start_after: timedelta | None = None,
    ) -> Execution:
        """Create a pending execution: `await manager.create("send-mail", {"to": "ada"})`."""
        new = new_execution(
            type,
            payload,
            max_attempts=max_attempts,
            timeout=timeout,
            idempotency_key=idempotency_key,
            parent_id=parent_id,
            metadata=metadata,
            start_after=start_after,
            max_bytes=self._max_bytes,
        )
        for _ in range(MAX_TRIES):
            if created := await self._store.create(new):
                return created
            key, parent = new.idempotency_key, new.parent_id
            if key and (found := await self._store.find_by_idempotency_key(key)):
                return check_same_work(new, found)
            if parent and not await self._store.find_by_id(parent):
                raise ExecutionNotFound(parent)
            # What stood in the way was deleted in between: the way is free now.
        raise ConcurrentUpdate("create", new.id)

    async def start(self, id: str, *, worker: str | None = None) -> Execution:
        """Begin the next attempt: `execution = await manager.start(id, worker="host-1")`."""
        return await self._apply(id, transitions.start(worker))

    async def complete(
        self, id: str, result: Any = None, *, attempt: int | None = None
    ) -> Execution:
        """Finish with a result, any JSON value: `await manager.complete(id, {"sent": 3})`."""
        return await self._apply(id, transitions.complete(result, attempt, self._max_bytes))

    async def fail(
        self,
        id: str,
        error: ExecutionFailure | BaseException | str,
        *,
        retryable: bool | None = None,
        retry_after: timedelta | None = None,
        attempt: int | None = None,
    ) -> Execution:
        """Record that the attempt failed: `await manager.fail(id, exc, retryable=True)`."""
        return await self._apply(id, transitions.fail(error, retryable, retry_after, attempt))

    async def timeout(self, id: str, *, attempt: int | None = None) -> Execution:
        """Record that the attempt took too long: `await manager.timeout(id, attempt=1)`."""
        return await self._apply(id, transitions.timeout(attempt))

    async def cancel(self, id: str, reason: str | None = None) -> Execution:
        """Call it off: `await manager.cancel(id, "customer withdrew")`."""
        return await self._apply(id, transitions.cancel(reason))

    async def retry(self, id: str) -> Execution:
        """Allow another attempt: `await manager.retry(id)`, then `start`."""
        return await self._apply(id, transitions.retry())

    async def replay(self, id: str, *, payload: Any = ...) -> Execution:
        """Do again what is over: `(await manager.replay(id)).id`."""
        for _ in range(MAX_TRIES):
            new = new_replay(await self.get(id), payload, self._max_bytes)
            if created := await self._store.create(new):
                return created
            # It, or its parent, was deleted in between.
        raise ConcurrentUpdate("replay", id)

    async def log(
        self,
        id: str,
        message: str,
        *,
        level: LogLevel | str = LogLevel.INFO,
        data: Any = None,
        attempt: int | None = None,
    ) -> LogEntry:
        """Add a line to the log: `await manager.log(id, "skipped a row", level="warning")`."""
        new = log_lines.new_log_entry(
            id, message, level, data, attempt=attempt, max_bytes=self._max_bytes
        )
        if entry := await self._store.log(new):
            return entry
        found = await self._store.find_by_id(new.execution_id)
        raise transitions.refusal(new.transition, new.execution_id, found)

    async def logs(
        self, id: str, *, limit: int = 100, before: str | None = None
    ) -> builtins.list[LogEntry]:
        """Return the log of an execution, newest first: `await manager.logs(id)`."""
        found = await self._store.logs(*log_lines.check_log_page(id, limit, before))
        if not found:
            await self.get(id)
        return found

    async def heartbeat(self, id: str, *, attempt: int | None = None) -> Execution:
        """Give a sign of life: `await manager.heartbeat(id, attempt=1)`."""
        return await self._apply(id, transitions.heartbeat(attempt))

    async def update_progress(
        self,
        id: str,
        current: int,
        total: int,
        *,
        message: str | None = None,
        percent: float | None = None,
        attempt: int | None = None,
    ) -> Execution:
        """Replace the progress: `await manager.update_progress(id, 50, 100)`."""
        return await self._apply(
            id, transitions.update_progress(current, total, message, percent, attempt)
        )

    async def checkpoint(
        self, id: str, key: str, value: Any, *, attempt: int | None = None
    ) -> Execution:
        """Set one checkpoint, any JSON value: `await manager.checkpoint(id, "last_index", 49)`."""
        return await self._apply(id, transitions.checkpoint(key, value, attempt, self._max_bytes))

    async def advance(
        self,
        id: str,
        current: int,
        total: int,
        *,
        key: str,
        value: Any,
        message: str | None = None,
        percent: float | None = None,
        attempt: int | None = None,
    ) -> Execution:
        """Replace the progress and set one checkpoint: `await manager.advance(id, 5, 9, key=…)`."""
        progress = transitions.update_progress(current, total, message, percent, attempt)
        checkpoint = transitions.checkpoint(key, value, attempt, self._max_bytes)
        return await self._apply(id, transitions.advance(progress, checkpoint))

    async def claim(
        self, type: str | None = None, *, limit: int = 1, worker: str | None = None
    ) -> builtins.list[Execution]:
        """Start what is waiting, the longest due first: `await manager.claim("mail", limit=10)`.

        Cancelled while it is under way, it may have started some; a sweep finds those.
        """
        return await self._store.update_many(check_batch(transitions.claim(worker), type, limit))

    async def sweep(
        self,
        *,
        stalled_after: timedelta | None = None,
        type: str | None = None,
        limit: int = 100,
    ) -> builtins.list[Execution]:
        """Time out what nobody works on any more: `await manager.sweep()`."""
        return await self._store.update_many(
            check_batch(transitions.sweep(stalled_after), type, limit)
        )

    def attempt(
        self,
        id: str | Execution,
        *,
        worker: str | None = None,
        retry_on: Exceptions = (),
        backoff: Backoff | None = None,
        heartbeat: timedelta | None = None,
    ) -> AsyncAttempt:
        """Make an attempt: `async with manager.attempt(id) as attempt: ...`."""
        return AsyncAttempt(
            self._store,
            check_options(
                id,
                worker=worker,
                retry_on=retry_on,
                backoff=backoff,
                heartbeat=heartbeat,
                joined=self._joined,
                alone=not getattr(self._store, "shares_connection", False),
                max_bytes=self._max_bytes,
            ),
        )

    def tracked(
        self,
        type: str,
        *,
        idempotency_key: Callable[..., str | None] | None = None,
        payload: Callable[..., Any] | None = None,
        max_attempts: int = 1,
        timeout: timedelta | None = None,
        worker: str | None = None,
        retry_on: Exceptions = (),
        backoff: Backoff | None = None,
        heartbeat: timedelta | None = None,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
        """Make every call of an async function an execution: `@manager.tracked("mail")`."""
        tracking = TrackedOptions(
            type=type,
            idempotency_key=idempotency_key,
            payload=payload,
            max_attempts=max_attempts,
            timeout=timeout,
            max_bytes=self._max_bytes,
        )

        def attempt(id: str) -> AsyncAttempt:
            return self.attempt(
                id, worker=worker, retry_on=retry_on, backoff=backoff, heartbeat=heartbeat
            )

        attempt(validation.new_id())  # what makes no sense is told at once
        return lambda function: tracked(self, tracking, attempt, function)

    async def get(self, id: str) -> Execution:
        """Read one execution: `(await manager.get(id)).status`."""
        id = validation.execution_id(id)
        if found := await self._store.find_by_id(id):
            return found
        raise ExecutionNotFound(id)

    async def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Return who holds the key, or None: `await manager.find_by_idempotency_key("a")`."""
        return await self._store.find_by_idempotency_key(validation.name("key", key))

    async def delete(self, id: str) -> None:
        """Remove an execution in any status, with its history: `await manager.delete(id)`."""
        id = validation.execution_id(id)
        if not await self._store.delete(id):
            raise ExecutionNotFound(id)

    async def prune(
        self,
        older_than: timedelta,
        *,
        status: ExecutionStatus | str | Iterable[ExecutionStatus | str] | None = None,
        type: str | None = None,
        keys_older_than: timedelta | None = None,
        limit: int = 1000,
    ) -> int:
        """Delete what has been over for long: `await manager.prune(timedelta(days=30))`."""
        return await self._store.prune(
            check_prune_request(older_than, status, type, keys_older_than, limit)
        )

    def within(
        self, connection_or_session: "AsyncConnection | AsyncSession | async_scoped_session[Any]"
    ) -> Self:
        """Join the caller's transaction: `await manager.within(session).start(id)`."""
        inside = copy(self)
        inside._store = store_within(self._store, connection_or_session)  # noqa: SLF001 - a copy of its own
        inside._joined = True  # noqa: SLF001
        return inside

    async def close(self) -> None:
        """Release what the store holds, if it is its own: `await manager.close()`."""
        if close := getattr(self._store, "close", None):
            await close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def list(
        self,
        *,
        status: ExecutionStatus | str | Iterable[ExecutionStatus | str] | None = None,
        type: str | None = None,
        parent_id: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> builtins.list[Execution]:
        """Return executions, newest first: `await manager.list(status="failed")`."""
        return await self._store.list(check_page(status, type, parent_id, limit, before))

    async def _apply(self, id: str, transition: Transition) -> Execution:
        id = validation.execution_id(id)
        moved: Execution | None = await self._store.update(id, transition)
        if moved:
            return moved
        return transitions.resolve_no_match(transition, id, await self._store.find_by_id(id))
