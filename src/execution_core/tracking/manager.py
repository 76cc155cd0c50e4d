"""The sync manager. Its verbs are in `manager_verbs`."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Self

from ..core.errors import ExecutionProblem
from ..core.json_values import MAX_JSON_BYTES
from ..core.models import AttemptRecord, ChildrenSummary, Execution, HistoryEntry, LogEntry
from ..core.steps import run
from ..core.store import ExecutionStore, Transaction
from .attempt import Attempt
from .decorator import TrackedOptions, TrackedSignature, call_steps
from .manager_verbs import ManagerVerbs
from .waiting import ThreadWaiter


class _Stopped(Exception):  # noqa: N818 - a carrier
    """Carries a StopIteration, which cannot leave a generator such as the steps of a call."""


class ExecutionManager(
    ManagerVerbs[
        Execution,
        Execution | None,
        list[Execution],
        list[Execution | ExecutionProblem],
        LogEntry,
        list[LogEntry],
        int,
        ChildrenSummary,
        list[HistoryEntry],
        list[AttemptRecord],
        None,
        Attempt,
        Transaction,
    ]
):
    """Tracks executions in a store: `manager = ExecutionManager(SqlExecutionStore(engine))`.

    It keeps no state: threads may share one, and every answer comes from the store. A verb that
    changes an execution returns it as it is after the change. A refused verb changes nothing and
    raises an `ExecutionProblem`: `ExecutionNotFound` for an unknown id, `InvalidStateTransition`
    for a status that does not allow the verb, `MaxRetriesExceeded`, `StaleAttempt` if another
    attempt than `attempt` is running, or `ConcurrentUpdate`. `InvalidValue` names a bad argument.

    Args:
        store: a `SqlExecutionStore`, or any `ExecutionStore`.
        max_json_bytes: the size limit of a payload, result, metadata or checkpoint value, in bytes
            of JSON in UTF-8.
    """

    _attempt_class = Attempt
    _waiter_class = ThreadWaiter
    _run = staticmethod(run)

    def __init__(self, store: ExecutionStore, *, max_json_bytes: int = MAX_JSON_BYTES) -> None:
        super().__init__(store, max_json_bytes=max_json_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _track(
        self,
        options: TrackedOptions,
        new_attempt: Callable[[str], Attempt],
        function: Callable[..., Any],
    ) -> Callable[..., Any]:
        signature = TrackedSignature(function, is_async=False)

        @wraps(function)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            def run_attempt(attempt: Attempt) -> Any:
                try:
                    with attempt:
                        result = function(*args, **kwargs, **signature.injected(attempt))
                        attempt.result = options.as_json(result)
                        return signature.typed(attempt.execution.id, attempt.result)
                except StopIteration as error:
                    raise _Stopped(error) from None

            signature.check(*args, **kwargs)
            new_execution = options.new_execution(*args, **kwargs)
            try:
                steps = call_steps(
                    self, new_execution, new_attempt, run_attempt, time.sleep, typed=signature.typed
                )
                return run(steps)
            except _Stopped as stopped:
                raise stopped.args[0] from None

        tracked.__signature__ = signature.public  # type: ignore[attr-defined]
        return tracked
