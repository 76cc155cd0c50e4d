"""The manager: one method per verb, all over one `_apply`."""

import builtins
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from . import transitions, values
from .creation import TRIES, creation, same_work
from .errors import ConcurrentUpdate, ExecutionNotFound
from .execution import Execution, ExecutionError, ExecutionStatus
from .store import ExecutionStore, page
from .transitions import Transition
from .values import MAX_INTEGER, MAX_JSON_BYTES

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session


class ExecutionManager:
    """Tracks executions in a store: `manager = ExecutionManager(SqlExecutionStore(engine))`.

    It keeps no state of its own: threads may share one, and every answer comes from the store.
    A verb that moves an execution returns it as it stands afterwards. A refused one changes nothing
    and raises an `ExecutionProblem`: `ExecutionNotFound`, `InvalidStateTransition`,
    `MaxRetriesExceeded`, `StaleAttempt` or `ConcurrentUpdate`; a bad argument is an `InvalidValue`.

    Args:
        store: a `SqlExecutionStore`, or any `ExecutionStore`.
        max_json_bytes: the largest payload, result, metadata or checkpoint value, as JSON in UTF-8.
    """

    def __init__(self, store: ExecutionStore, *, max_json_bytes: int = MAX_JSON_BYTES) -> None:
        self._store = store
        self._max_bytes = values.integer("max_json_bytes", max_json_bytes, 1, MAX_INTEGER)

    def create(
        self,
        type: str,
        payload: Any = None,
        *,
        max_attempts: int = 1,
        timeout: timedelta | None = None,
        idempotency_key: str | None = None,
        parent_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Execution:
        """Create a pending execution: `manager.create("send-mail", {"to": "ada"}, max_attempts=3)`.

        Args:
            type: what kind of work it is, 1 to 255 characters.
            payload: what to do, any JSON value; datetime, UUID, Decimal, Enum, dataclasses and
                pydantic models are stored as pydantic serialises them.
            max_attempts: how often it may be started.
            timeout: how long one attempt may take, rounded to milliseconds, at least one.
            idempotency_key: makes the call safe to repeat, 1 to 255 characters.
            parent_id: the execution that this one belongs to.
            metadata: a JSON object of the caller's own.

        Returns:
            The new execution; or, in whatever status it is, the one that already holds the key.

        Raises:
            IdempotencyConflict: the key belongs to another type or payload.
            ExecutionNotFound: there is no such parent.
            InvalidValue: an argument cannot be stored.
        """
        new = creation(
            type,
            payload,
            max_attempts=max_attempts,
            timeout=timeout,
            idempotency_key=idempotency_key,
            parent_id=parent_id,
            metadata=metadata,
            max_bytes=self._max_bytes,
        )
        for _ in range(TRIES):
            if created := self._store.create(new):
                return created
            key, parent = new.idempotency_key, new.parent_id
            if key and (found := self._store.find_by_idempotency_key(key)):
                return same_work(new, found)
            if parent and not self._store.find_by_id(parent):
                raise ExecutionNotFound(parent)
            # What stood in the way was deleted in between: the way is free now.
        raise ConcurrentUpdate("create", new.id)

    def start(self, id: str, *, worker: str | None = None) -> Execution:
        """Begin the next attempt: `attempt = manager.start(id, worker="host-1").attempts`.

        From pending or retrying. Counts the attempt and sets its deadline. Of several callers one
        wins; the others get an `InvalidStateTransition`. `worker` replaces the last one.
        """
        return self._apply(id, transitions.start(worker))

    def complete(self, id: str, result: Any = None, *, attempt: int | None = None) -> Execution:
        """Finish with a result, any JSON value: `manager.complete(id, {"sent": 3})`.

        From running. With `attempt`, only if that attempt still owns it.
        """
        return self._apply(id, transitions.complete(result, attempt, self._max_bytes))

    def fail(
        self,
        id: str,
        error: ExecutionError | BaseException | str,
        *,
        retryable: bool | None = None,
        attempt: int | None = None,
    ) -> Execution:
        """Record that the attempt failed: `manager.fail(id, exc, retryable=True)`.

        From running: it becomes retrying when the error is retryable and an attempt is left, failed
        otherwise. From retrying: it gives up, failed. `retryable` overrides the error's own. Text
        that cannot be stored is cleaned and cut, never refused.
        """
        return self._apply(id, transitions.fail(error, retryable, attempt))

    def timeout(self, id: str, *, attempt: int | None = None) -> Execution:
        """Record that the attempt took too long: `manager.timeout(id, attempt=1)`.

        From running, whether or not its deadline has passed. `retry` may bring it back.
        """
        return self._apply(id, transitions.timeout(attempt))

    def cancel(self, id: str, reason: str | None = None) -> Execution:
        """Call it off: `manager.cancel(id, "customer withdrew")`.

        From pending or running. A reason is kept as `metadata["cancellation_reason"]`.
        """
        return self._apply(id, transitions.cancel(reason))

    def retry(self, id: str) -> Execution:
        """Allow another attempt: `manager.retry(id)`, then `start`.

        From failed or timed_out, while an attempt is left. A retrying one is returned unchanged.
        """
        return self._apply(id, transitions.retry())

    def update_progress(
        self,
        id: str,
        current: int,
        total: int,
        *,
        message: str | None = None,
        percent: float | None = None,
        attempt: int | None = None,
    ) -> Execution:
        """Replace the progress: `manager.update_progress(id, 50, 100, message="Half way")`.

        While pending, running or retrying. `percent`, 0 to 100, is computed where it is not given.
        """
        return self._apply(
            id, transitions.update_progress(current, total, message, percent, attempt)
        )

    def checkpoint(self, id: str, key: str, value: Any, *, attempt: int | None = None) -> Execution:
        """Set one checkpoint, any JSON value: `manager.checkpoint(id, "last_index", 49)`.

        While pending, running or retrying. Other keys are untouched, whoever writes them meanwhile.
        """
        return self._apply(id, transitions.checkpoint(key, value, attempt, self._max_bytes))

    def get(self, id: str) -> Execution:
        """Read one execution: `manager.get(id).status`.

        Raises:
            ExecutionNotFound: there is none; also when the id is no UUID.
        """
        id = values.execution_id(id)
        if found := self._store.find_by_id(id):
            return found
        raise ExecutionNotFound(id)

    def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Return who holds the key, or None: `manager.find_by_idempotency_key("ship-7")`."""
        return self._store.find_by_idempotency_key(values.name("key", key))

    def delete(self, id: str) -> None:
        """Remove an execution in any status, with its history: `manager.delete(id)`.

        Its children lose their parent.

        Raises:
            ExecutionNotFound: there is none.
        """
        id = values.execution_id(id)
        if not self._store.delete(id):
            raise ExecutionNotFound(id)

    def within(self, connection_or_session: "Connection | Session | scoped_session[Any]") -> Self:
        """Join the caller's transaction: return a manager that works inside it.

        `manager.within(session).create("ship", {"order": 7})` commits or rolls back with the
        caller's own rows; it never commits by itself, and a refusal leaves the transaction usable.

        Raises:
            InvalidValue: it is neither a Connection nor a Session.
            NotImplementedError: the store has no `within`.
        """
        join = getattr(self._store, "within", None)
        if join is None:
            raise NotImplementedError(f"{type(self._store).__name__} cannot join a transaction")
        return type(self)(join(connection_or_session), max_json_bytes=self._max_bytes)

    def close(self) -> None:
        """Release what the store holds, if it is its own: `manager.close()`."""
        if close := getattr(self._store, "close", None):
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def list(
        self,
        *,
        status: ExecutionStatus | str | Iterable[ExecutionStatus | str] | None = None,
        type: str | None = None,
        parent_id: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> builtins.list[Execution]:
        """Return executions, newest first: `manager.list(status="failed", before=last.id)`.

        Args:
            status: one or several statuses.
            type: one type.
            parent_id: the children of one execution.
            limit: 1 to 10,000.
            before: only ids below this one: the last id of a page asks for the next page.

        Returns:
            At most `limit` executions; an empty list when there are none.

        Raises:
            ExecutionNotFound: `parent_id` or `before` is no UUID.
        """
        return self._store.list(page(status, type, parent_id, limit, before))

    def _apply(self, id: str, transition: Transition) -> Execution:
        id = values.execution_id(id)
        if moved := self._store.update(id, transition):
            return moved
        return transitions.unmoved(transition, id, self._store.find_by_id(id))
