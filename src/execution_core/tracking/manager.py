"""The sync manager. Its verbs are in `manager_verbs`."""

from collections.abc import Callable
from typing import Any, Self

from ..core.json_values import MAX_JSON_BYTES
from ..core.models import Execution, LogEntry
from ..core.steps import Steps, run
from ..core.store import ExecutionStore, Transaction
from .attempt import Attempt
from .decorator import TrackedOptions
from .manager_verbs import ManagerVerbs
from .sync_decorator import track


class ExecutionManager(
    ManagerVerbs[
        Execution,
        Execution | None,
        list[Execution],
        LogEntry,
        list[LogEntry],
        int,
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

    def __init__(self, store: ExecutionStore, *, max_json_bytes: int = MAX_JSON_BYTES) -> None:
        super().__init__(store, max_json_bytes=max_json_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, steps: Steps[Any]) -> Any:
        return run(steps)

    def _track(
        self, options: TrackedOptions, new_attempt: Callable[[str], Attempt], function: Any
    ) -> Any:
        return track(self, options, new_attempt, function)
