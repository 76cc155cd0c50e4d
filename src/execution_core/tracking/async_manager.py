"""The manager for asyncio. Its verbs are in `manager_verbs`."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Self, TypeVar

from ..core.errors import ExecutionProblem
from ..core.json_values import MAX_JSON_BYTES
from ..core.models import AttemptRecord, ChildrenSummary, Execution, HistoryEntry, LogEntry
from ..core.steps import run_async, with_coroutines
from ..core.store import AsyncExecutionStore, AsyncTransaction
from .async_attempt import AsyncAttempt
from .decorator import TrackedOptions, TrackedSignature, call_steps
from .manager_verbs import ManagerVerbs
from .waiting import TaskWaiter

T = TypeVar("T")
Awaited = Coroutine[Any, Any, T]


@with_coroutines("attempt", "tracked", "within")
class AsyncExecutionManager(
    ManagerVerbs[
        Awaited[Execution],
        Awaited[Execution | None],
        Awaited[list[Execution]],
        Awaited[list[Execution | ExecutionProblem]],
        Awaited[LogEntry],
        Awaited[list[LogEntry]],
        Awaited[int],
        Awaited[ChildrenSummary],
        Awaited[list[HistoryEntry]],
        Awaited[list[AttemptRecord]],
        Awaited[None],
        AsyncAttempt,
        AsyncTransaction,
    ]
):
    """Tracks executions in a store: `AsyncExecutionManager(AsyncSqlExecutionStore(engine))`.

    The verbs, their arguments and errors are those of `ExecutionManager`; each is awaited:
    `execution = await manager.create("mail", {"to": "ada"})`.

    It keeps no state: tasks may share one, and every answer comes from the store. A verb that
    changes an execution returns it as it is after the change. A refused verb changes nothing and
    raises an `ExecutionProblem`: `ExecutionNotFound` for an unknown id, `InvalidStateTransition`
    for a status that does not allow the verb, `MaxRetriesExceeded`, `StaleAttempt` if another
    attempt than `attempt` is running, or `ConcurrentUpdate`. `InvalidValue` names a bad argument.

    Args:
        store: an `AsyncSqlExecutionStore`, or any `AsyncExecutionStore`.
        max_json_bytes: the size limit of a payload, result, metadata or checkpoint value, in bytes
            of JSON in UTF-8.
    """

    _attempt_class = AsyncAttempt
    _waiter_class = TaskWaiter
    _run = staticmethod(run_async)

    def __init__(self, store: AsyncExecutionStore, *, max_json_bytes: int = MAX_JSON_BYTES) -> None:
        super().__init__(store, max_json_bytes=max_json_bytes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _track(
        self,
        options: TrackedOptions,
        new_attempt: Callable[[str], AsyncAttempt],
        function: Callable[..., Any],
    ) -> Callable[..., Any]:
        signature = TrackedSignature(function, is_async=True)

        @wraps(function)
        async def tracked(*args: Any, **kwargs: Any) -> Any:
            async def run_attempt(attempt: AsyncAttempt) -> Any:
                async with attempt:
                    result = await function(*args, **kwargs, **signature.injected(attempt))
                    attempt.result = options.as_json(result)
                    return signature.typed(attempt.execution.id, attempt.result)

            signature.check(*args, **kwargs)
            new_execution = options.new_execution(*args, **kwargs)
            steps = call_steps(
                self, new_execution, new_attempt, run_attempt, asyncio.sleep, typed=signature.typed
            )
            return await run_async(steps)

        tracked.__signature__ = signature.public  # type: ignore[attr-defined]
        return tracked
