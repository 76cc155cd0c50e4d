"""The manager: one method per verb, all over one `_apply`."""

import builtins
from collections.abc import Callable, Iterable
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
from ..core.store import ExecutionStore, store_within
from ..core.transitions import Transition
from ..core.validation import MAX_INTEGER
from .attempt import Attempt
from .attempt_options import Exceptions, check_options
from .decorator import TrackedOptions
from .sync_decorator import tracked

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session

P = ParamSpec("P")
R = TypeVar("R")


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
        self._max_bytes = validation.integer("max_json_bytes", max_json_bytes, 1, MAX_INTEGER)
        self._joined = False

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
        start_after: timedelta | None = None,
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
            start_after: how long `claim` is to leave it alone.

        Returns:
            The new execution; or, in whatever status it is, the one that already holds the key.

        Raises:
            IdempotencyConflict: the key belongs to another type or payload.
            ExecutionNotFound: there is no such parent.
            InvalidValue: an argument cannot be stored.
        """
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
            if created := self._store.create(new):
                return created
            key, parent = new.idempotency_key, new.parent_id
            if key and (found := self._store.find_by_idempotency_key(key)):
                return check_same_work(new, found)
            if parent and not self._store.find_by_id(parent):
                raise ExecutionNotFound(parent)
            # What stood in the way was deleted in between: the way is free now.
        raise ConcurrentUpdate("create", new.id)

    def start(self, id: str, *, worker: str | None = None) -> Execution:
        """Begin the next attempt: `attempt = manager.start(id, worker="host-1").attempts`.

        From pending or retrying, whether or not it is due. Counts the attempt and sets its
        deadline. Of several callers one wins; the others get an `InvalidStateTransition`. `worker`
        replaces the last one.
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
        error: ExecutionFailure | BaseException | str,
        *,
        retryable: bool | None = None,
        retry_after: timedelta | None = None,
        attempt: int | None = None,
    ) -> Execution:
        """Record that the attempt failed: `manager.fail(id, exc, retryable=True)`.

        From running: it becomes retrying when the error is retryable and an attempt is left, failed
        otherwise. From retrying: it gives up, failed. With `attempt`, only while that attempt is
        running: between two of them nobody owns it. `retryable` overrides the error's own;
        `retry_after` is how long `claim` is to leave it alone before the next attempt. Text that
        cannot be stored is cleaned and cut, never refused.
        """
        return self._apply(id, transitions.fail(error, retryable, retry_after, attempt))

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

    def replay(self, id: str, *, payload: Any = ...) -> Execution:
        """Do again what is over, as a new execution: `manager.replay(id).id`.

        From completed, failed, timed_out or cancelled, which stays as it is. The new execution is
        pending and names the old one in `replay_of`. It has its type, payload, max_attempts,
        timeout, parent and metadata (but for the reason of a cancellation); not its key, result,
        progress, checkpoints or log.

        Args:
            id: the execution to do again.
            payload: another payload, any JSON value; the old one's by default.

        Returns:
            The new execution.

        Raises:
            ExecutionNotFound: there is none.
            InvalidStateTransition: it is not over.
            InvalidValue: the payload cannot be stored.
        """
        for _ in range(MAX_TRIES):
            new = new_replay(self.get(id), payload, self._max_bytes)
            if created := self._store.create(new):
                return created
            # It, or its parent, was deleted in between.
        raise ConcurrentUpdate("replay", id)

    def log(
        self,
        id: str,
        message: str,
        *,
        level: LogLevel | str = LogLevel.INFO,
        data: Any = None,
        attempt: int | None = None,
    ) -> LogEntry:
        """Add a line to the log: `manager.log(id, "skipped", level="warning", data={"row": 7})`.

        In any status; with `attempt`, only while that attempt is running. It is no sign of life.

        Args:
            id: an execution.
            message: the line; what cannot be stored in it is replaced, what is over 10,000
                characters cut.
            level: debug, info, warning, error or critical.
            data: what belongs to it, any JSON value.
            attempt: who logs it.

        Raises:
            ExecutionNotFound: there is no such execution.
            StaleAttempt: another attempt owns it; `InvalidStateTransition` when none does.
            InvalidValue: an argument cannot be stored.
        """
        new = log_lines.new_log_entry(
            id, message, level, data, attempt=attempt, max_bytes=self._max_bytes
        )
        if entry := self._store.log(new):
            return entry
        found = self._store.find_by_id(new.execution_id)
        raise transitions.refusal(new.transition, new.execution_id, found)

    def logs(
        self, id: str, *, limit: int = 100, before: str | None = None
    ) -> builtins.list[LogEntry]:
        """Return the log of an execution, newest first: `manager.logs(id)[0].message`.

        Args:
            id: an execution.
            limit: 1 to 10,000.
            before: only entries before this one: the last id of a page asks for the next page.

        Raises:
            ExecutionNotFound: there is no such execution.
            InvalidValue: `before` is not a UUID.
        """
        found = self._store.logs(*log_lines.check_log_page(id, limit, before))
        if not found:
            self.get(id)
        return found

    def heartbeat(self, id: str, *, attempt: int | None = None) -> Execution:
        """Give a sign of life: `manager.heartbeat(id, attempt=1)`.

        While running. `start`, `update_progress`, `checkpoint` and `advance` give one as well.
        """
        return self._apply(id, transitions.heartbeat(attempt))

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

        While pending, running or retrying; with `attempt`, while that attempt is running.
        `percent`, 0 to 100, is computed where it is not given.
        """
        return self._apply(
            id, transitions.update_progress(current, total, message, percent, attempt)
        )

    def checkpoint(self, id: str, key: str, value: Any, *, attempt: int | None = None) -> Execution:
        """Set one checkpoint, any JSON value: `manager.checkpoint(id, "last_index", 49)`.

        While pending, running or retrying; with `attempt`, while that attempt is running. Other
        keys are untouched, whoever writes them meanwhile.
        """
        return self._apply(id, transitions.checkpoint(key, value, attempt, self._max_bytes))

    def advance(
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
        """Replace the progress and set a checkpoint: `manager.advance(id, 5, 9, key="k", value=4)`.

        As `update_progress` and `checkpoint`, in one statement: nobody sees one without the other.
        """
        progress = transitions.update_progress(current, total, message, percent, attempt)
        checkpoint = transitions.checkpoint(key, value, attempt, self._max_bytes)
        return self._apply(id, transitions.advance(progress, checkpoint))

    def claim(
        self, type: str | None = None, *, limit: int = 1, worker: str | None = None
    ) -> builtins.list[Execution]:
        """Start what is waiting, the longest due first: `manager.claim("mail", limit=10)`.

        Pending or retrying, and due: from its `retry_at` on, without one from `created_at` on.
        Callers at once never get the same one. On PostgreSQL none waits for another: what a
        transaction holds is skipped.

        Args:
            type: one type; any by default.
            limit: how many at most, 1 to 10,000.
            worker: who runs them.

        Returns:
            The started executions by id, each for `attempt`; an empty list when nothing is due.
            No heart beats before its block: claim what is worked on at once.
        """
        return self._store.update_many(check_batch(transitions.claim(worker), type, limit))

    def sweep(
        self,
        *,
        stalled_after: timedelta | None = None,
        type: str | None = None,
        limit: int = 100,
    ) -> builtins.list[Execution]:
        """Time out what nobody works on any more: `manager.sweep(stalled_after=timedelta(days=1))`.

        Running, and past its deadline (the error's code is `timeout`) or, with `stalled_after`,
        without a start, heartbeat, progress or checkpoint for so long (`stalled`).

        Args:
            stalled_after: longer than any sound attempt is silent.
            type: one type; any by default.
            limit: how many at most, 1 to 10,000: one statement.

        Returns:
            Those that it timed out, by id; `retry` brings them back. When there are `limit` of
            them, there may be more.
        """
        return self._store.update_many(check_batch(transitions.sweep(stalled_after), type, limit))

    def attempt(
        self,
        id: str | Execution,
        *,
        worker: str | None = None,
        retry_on: Exceptions = (),
        backoff: Backoff | None = None,
        heartbeat: timedelta | None = None,
    ) -> Attempt:
        """Make an attempt: `with manager.attempt(id, retry_on=TimeoutError) as attempt: ...`.

        Entering it starts the execution. Leaving it completes it with `attempt.result`; leaving it
        by an exception fails it, and the exception goes on. What is no `Exception`, such as
        KeyboardInterrupt, SystemExit and asyncio.CancelledError, is a failure with the code
        `interrupted`, always retryable.

        Args:
            id: an execution's id; or what `claim` or `start` returned, which is not started again.
            worker: who runs it.
            retry_on: exceptions after which another attempt may help, as in `except`; a group of
                them, too.
            backoff: how long that attempt is to wait, for those who `claim` it.
            heartbeat: beat by itself, this often, in a thread; not on a shared connection (in a
                transaction of the caller's, or with in-memory SQLite).

        Returns:
            The attempt, for `with`; it gets an `AttemptLost` once it does not own its execution.

        Raises:
            InvalidValue: an argument makes no sense; what `start` raises is raised by `with`.
        """
        return Attempt(
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
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Make every call of a function an execution: `@manager.tracked("mail", max_attempts=3)`.

        A call creates the execution, makes its attempts one after the other, and returns the
        result as JSON has it. With a key, a later call returns that result without running; where
        the execution failed or timed out, it makes the next attempt. A function with a keyword
        `attempt` is given it (with a default, for the sake of type checkers).

        Args:
            type: what kind of work it is.
            idempotency_key: makes the key from the function's arguments.
            payload: makes the payload from the function's arguments.
            max_attempts: how often it may be started.
            timeout: how long one attempt may take.
            worker: who runs it.
            retry_on: exceptions after which it is tried again, as in `except`.
            backoff: how long to wait before that; at once without it.
            heartbeat: beat by itself, this often.

        Returns:
            A decorator. What it returns raises what the function raises, and `AlreadyRunning`,
            `AttemptLost`, `MaxRetriesExceeded`, or `InvalidStateTransition` when it was cancelled.

        Raises:
            InvalidValue: an argument makes no sense, or the function is an async one.
        """
        tracking = TrackedOptions(
            type=type,
            idempotency_key=idempotency_key,
            payload=payload,
            max_attempts=max_attempts,
            timeout=timeout,
            max_bytes=self._max_bytes,
        )

        def attempt(id: str) -> Attempt:
            return self.attempt(
                id, worker=worker, retry_on=retry_on, backoff=backoff, heartbeat=heartbeat
            )

        attempt(validation.new_id())  # what makes no sense is told at once
        return lambda function: tracked(self, tracking, attempt, function)

    def get(self, id: str) -> Execution:
        """Read one execution: `manager.get(id).status`.

        Raises:
            ExecutionNotFound: there is none; also when the id is no UUID.
        """
        id = validation.execution_id(id)
        if found := self._store.find_by_id(id):
            return found
        raise ExecutionNotFound(id)

    def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Return who holds the key, or None: `manager.find_by_idempotency_key("ship-7")`."""
        return self._store.find_by_idempotency_key(validation.name("key", key))

    def delete(self, id: str) -> None:
        """Remove an execution in any status, with its history and log: `manager.delete(id)`.

        Its children lose their parent.

        Raises:
            ExecutionNotFound: there is none.
        """
        id = validation.execution_id(id)
        if not self._store.delete(id):
            raise ExecutionNotFound(id)

    def prune(
        self,
        older_than: timedelta,
        *,
        status: ExecutionStatus | str | Iterable[ExecutionStatus | str] | None = None,
        type: str | None = None,
        keys_older_than: timedelta | None = None,
        limit: int = 1000,
    ) -> int:
        """Delete what has been over for long: `manager.prune(timedelta(days=30))`.

        With its history and its log, those first that came to rest first. Never what is pending,
        running or retrying, and never a parent of what is. It waits for nobody: what another
        transaction is changing, or has a child or replay that is being changed, is left for the
        next call. An idempotency key goes with its execution, and then no longer keeps the work
        from being done again.

        Args:
            older_than: how long it has been over, at least.
            status: one or several of completed, failed, timed_out and cancelled; all by default.
            type: one type; any by default.
            keys_older_than: the same as `older_than`, for executions with an idempotency key: how
                long a key still matters.
            limit: how many at most, 1 to 10,000: one statement.

        Returns:
            How many it deleted. When that is `limit`, there may be more: call it again.

        Raises:
            InvalidValue: an argument makes no sense, such as a status that is not over.
        """
        return self._store.prune(
            check_prune_request(older_than, status, type, keys_older_than, limit)
        )

    def within(self, connection_or_session: "Connection | Session | scoped_session[Any]") -> Self:
        """Join the caller's transaction: return a manager that works inside it.

        `manager.within(session).create("ship", {"order": 7})` commits or rolls back with the
        caller's own rows; it never commits by itself, and a refusal leaves the transaction usable.

        Raises:
            InvalidValue: it is neither a Connection nor a Session.
            NotImplementedError: the store has no `within`.
        """
        inside = copy(self)
        inside._store = store_within(self._store, connection_or_session)  # noqa: SLF001 - a copy of its own
        inside._joined = True  # noqa: SLF001
        return inside

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
            ExecutionNotFound: `parent_id` is not a UUID.
            InvalidValue: `before` is not a UUID, or another argument is invalid.
        """
        return self._store.list(check_page(status, type, parent_id, limit, before))

    def _apply(self, id: str, transition: Transition) -> Execution:
        id = validation.execution_id(id)
        moved: Execution | None = self._store.update(id, transition)
        if moved:
            return moved
        return transitions.resolve_no_match(transition, id, self._store.find_by_id(id))
