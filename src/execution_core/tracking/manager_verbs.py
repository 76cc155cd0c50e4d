"""What the sync and the async manager share: every verb, with its one signature and docstring.

A verb returns the result of the store or of its steps, or a coroutine that returns it: the type
parameters say which.
"""

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, Self, TypeVar, cast

from ..core import transitions, validation
from ..core.backoff import Backoff
from ..core.creation import ReplayOptions, new_execution
from ..core.errors import InvalidValue
from ..core.json_values import MAX_JSON_BYTES
from ..core.log_lines import new_log_entry
from ..core.models import Execution, ExecutionFailure, ExecutionStatus, LogLevel
from ..core.selections import check_batch, check_page, check_prune_request
from ..core.steps import Steps
from ..core.store import store_within
from ..core.transitions import Transition
from . import verbs
from .attempt_options import Exceptions, check_options
from .attempt_state import AttemptState
from .decorator import TrackedOptions

OneT = TypeVar("OneT")
FoundT = TypeVar("FoundT")
ManyT = TypeVar("ManyT")
EntryT = TypeVar("EntryT")
EntriesT = TypeVar("EntriesT")
CountT = TypeVar("CountT")
NoneT = TypeVar("NoneT")
AttemptT = TypeVar("AttemptT", bound=AttemptState[Any, Any])
TransactionT = TypeVar("TransactionT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class ManagerVerbs(
    Generic[OneT, FoundT, ManyT, EntryT, EntriesT, CountT, NoneT, AttemptT, TransactionT]
):
    """The verbs of a manager. Those of an `AsyncExecutionManager` are awaited."""

    # Defined by the sync and the async manager.
    _attempt_class: type[AttemptT]
    _run: Callable[[Steps[Any]], Any]
    _track: Callable[[TrackedOptions, Callable[[str], AttemptT], Callable[..., Any]], Any]

    def __init__(self, store: Any, *, max_json_bytes: int = MAX_JSON_BYTES) -> None:
        if not callable(getattr(store, "find_by_id", None)):
            raise InvalidValue("store", f"must be an ExecutionStore, not {type(store).__name__}")
        self._store = store
        self._max_bytes = validation.integer(
            "max_json_bytes", max_json_bytes, 1, validation.MAX_INTEGER
        )
        self._joined = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store!r})"

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
    ) -> OneT:
        """Create a pending execution: `manager.create("mail", {"to": "ada"})`.

        Args:
            type: the kind of work, 1 to 255 characters.
            payload: the input of the work, any JSON value; datetime, UUID, Decimal, Enum,
                dataclasses and pydantic models are stored as pydantic serialises them.
            max_attempts: the maximum number of attempts.
            timeout: the maximum run time of one attempt, rounded to milliseconds, at least one.
            idempotency_key: a unique key that makes the call safe to repeat, 1 to 255 characters.
            parent_id: the execution that this one belongs to.
            metadata: a JSON object for the caller's own use.
            start_after: the delay before `claim` may start it.

        Returns:
            The new execution; or the existing one that holds the key, in whatever status it is.

        Raises:
            IdempotencyConflict: the key belongs to an execution of another type or payload.
            ExecutionNotFound: the parent does not exist.
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
        return cast("OneT", self._run(verbs.create(self._store, new)))

    def start(self, id: str, *, worker: str | None = None) -> OneT:
        """Start the next attempt: `attempt = manager.start(id, worker="host-1").attempts`.

        From pending or retrying; delays are ignored. It counts the attempt and sets its deadline.
        If several callers try at once, exactly one succeeds. `worker`, a name of 1 to 255
        characters, replaces the last one. Raises MaxRetriesExceeded if no attempt is left.
        """
        return self._apply(id, transitions.start(worker))

    def complete(
        self, id: str, result: Any = None, *, attempt: int | None = None, by: str | None = None
    ) -> OneT:
        """Complete it with a result, any JSON value: `manager.complete(id, {"sent": 3})`.

        From running; with `attempt`, only if that attempt is running. `by` names who does it, for
        the history. Raises InvalidValue if the result cannot be stored.
        """
        return self._apply(id, transitions.complete(result, attempt, self._max_bytes), by)

    def fail(
        self,
        id: str,
        error: ExecutionFailure | BaseException | str,
        *,
        retryable: bool | None = None,
        retry_after: timedelta | None = None,
        attempt: int | None = None,
        by: str | None = None,
    ) -> OneT:
        """Record that the attempt failed: `manager.fail(id, exc, retryable=True)`.

        From running: it becomes retrying if the error is retryable and an attempt is left, else
        failed. From retrying: it becomes failed.

        Args:
            id: the id of the execution.
            error: an `ExecutionFailure`, an exception or a text, cleaned and cut if necessary.
            retryable: whether another attempt may help; overrides `error.retryable`.
            retry_after: the delay before `claim` may start the next attempt; implies `retryable`.
            attempt: refuse the call unless this attempt is running.
            by: who does it, 1 to 255 characters, for the history.
        """
        return self._apply(id, transitions.fail(error, retryable, retry_after, attempt), by)

    def timeout(self, id: str, *, attempt: int | None = None, by: str | None = None) -> OneT:
        """Record that the attempt took too long: `manager.timeout(id, attempt=1)`.

        From running, before or after its deadline; with `attempt`, only if that attempt is running.
        `retry` allows another attempt. `by` names who does it, for the history.
        """
        return self._apply(id, transitions.timeout(attempt), by)

    def cancel(self, id: str, reason: str | None = None, *, by: str | None = None) -> OneT:
        """Cancel it: `manager.cancel(id, "customer withdrew", by="ada")`.

        From pending, running or retrying. The reason, a text, is kept as
        `metadata["cancellation_reason"]`; `by` names who cancels, for the history. A failed or
        timed-out execution has finished already: nothing starts it unless `retry` is called.
        """
        return self._apply(id, transitions.cancel(reason), by)

    def retry(
        self,
        id: str,
        *,
        retry_after: timedelta | None = None,
        extra_attempts: int = 0,
        by: str | None = None,
    ) -> OneT:
        """Allow another attempt: `manager.retry(id)`, then `start` or `claim`.

        From failed or timed_out: it becomes retrying. A pending or retrying execution keeps its
        status and becomes due.

        Args:
            id: the id of the execution.
            retry_after: the delay before `claim` may start the attempt; none by default.
            extra_attempts: how many attempts are allowed beyond those that are used, up to 10,000:
                `max_attempts` becomes `attempts + extra_attempts` unless it is larger.
            by: who does it, 1 to 255 characters, for the history.

        Raises:
            MaxRetriesExceeded: no attempt is left, and `extra_attempts` is 0.
        """
        return self._apply(id, transitions.retry(retry_after, extra_attempts), by)

    def release(self, id: str, *, attempt: int | None = None, by: str | None = None) -> OneT:
        """Hand an attempt back without using it up: `manager.release(id, attempt=1)`.

        From running: it becomes retrying and is due at once; with `attempt`, only if that attempt
        is running. The number of the attempt stays used, so `max_attempts` grows by one. `by` names
        who does it, for the history.
        """
        return self._apply(id, transitions.release(attempt), by)

    def replay(
        self,
        id: str,
        *,
        payload: Any = ...,
        keep_checkpoints: bool = False,
        by: str | None = None,
    ) -> OneT:
        """Repeat a finished execution as a new one: `manager.replay(id).id`.

        The finished execution stays as it is. The new one is pending and names it in `replay_of`.
        It has the same type, payload, max_attempts, timeout, parent and metadata (without the
        reason of a cancellation). It has no idempotency key, result, progress or log.

        Args:
            id: the id of a completed, failed, timed out or cancelled execution.
            payload: another payload, any JSON value; by default that of the old execution.
            keep_checkpoints: begin with its checkpoints, so that a batch resumes where it ended.
            by: who does it, 1 to 255 characters, for the history.

        Returns:
            The new execution.

        Raises:
            ExecutionNotFound: there is no such execution.
            InvalidStateTransition: it is not finished.
            InvalidValue: the payload cannot be stored.
        """
        options = ReplayOptions(
            payload=payload,
            keep_checkpoints=validation.flag("keep_checkpoints", keep_checkpoints),
            actor=None if by is None else validation.name("by", by),
            max_bytes=self._max_bytes,
        )
        return cast("OneT", self._run(verbs.replay(self._store, id, options)))

    def log(
        self,
        id: str,
        message: str,
        *,
        level: LogLevel | str = LogLevel.INFO,
        data: Any = None,
        attempt: int | None = None,
    ) -> EntryT:
        """Add an entry to the log: `manager.log(id, "skipped a row", level="warning")`.

        In any status; with `attempt`, only if that attempt is running. It is not a heartbeat.

        Args:
            id: the id of the execution.
            message: a text; what cannot be stored is replaced; cut after 10,000 characters.
            level: debug, info, warning, error or critical.
            data: any JSON value.
            attempt: the attempt that logs.
        """
        new = new_log_entry(id, message, level, data, attempt=attempt, max_bytes=self._max_bytes)
        return cast("EntryT", self._run(verbs.log(self._store, new)))

    def logs(self, id: str, *, limit: int = 100, before: str | None = None) -> EntriesT:
        """Return the log of an execution, newest first: `manager.logs(id)[0].message`.

        Args:
            id: the id of the execution.
            limit: the maximum number of entries, 1 to 10,000.
            before: only entries older than this one: the last id of a page asks for the next page.
        """
        return cast("EntriesT", self._run(verbs.logs(self._store, id, limit, before)))

    def heartbeat(self, id: str, *, attempt: int | None = None) -> OneT:
        """Show that the attempt is alive: `manager.heartbeat(id, attempt=1)`.

        From running; with `attempt`, only if that attempt is running. `start`, `update_progress`,
        `checkpoint` and `advance` do so as well.
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
    ) -> OneT:
        """Replace the progress: `manager.update_progress(id, 50, 100, message="half way")`.

        While pending, running or retrying; with `attempt`, only if that attempt is running.

        Args:
            id: the id of the execution.
            current: how many units are done.
            total: how many units there are; 0 while that is unknown.
            message: a text for readers, up to 10,000 characters.
            percent: 0 to 100; computed from current and total by default.
            attempt: the attempt that writes.
        """
        progress = transitions.update_progress(current, total, message, percent, attempt)
        return self._apply(id, progress)

    def checkpoint(self, id: str, key: str, value: Any, *, attempt: int | None = None) -> OneT:
        """Set one checkpoint: `manager.checkpoint(id, "last_index", 49)`.

        While pending, running or retrying; with `attempt`, only if that attempt is running. The
        key has 1 to 255 characters. The value, any JSON value, replaces the old one. Other keys
        stay unchanged, also under concurrent writes.
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
    ) -> OneT:
        """Update progress and a checkpoint: `manager.advance(id, 5, 9, key="k", value=4)`.

        As `update_progress` and `checkpoint` do, with their arguments, in one statement: no reader
        sees one of the two without the other.
        """
        progress = transitions.update_progress(current, total, message, percent, attempt)
        checkpoint = transitions.checkpoint(key, value, attempt, self._max_bytes)
        return self._apply(id, transitions.advance(progress, checkpoint))

    def annotate(self, id: str, metadata: dict[str, Any]) -> OneT:
        """Set keys of the metadata: `manager.annotate(id, {"ticket": 17})`.

        In any status. Each value, any JSON value, replaces the old one. Other keys stay unchanged,
        also under concurrent writes. Raises InvalidValue without a key, or for a value that cannot
        be stored.
        """
        return self._apply(id, transitions.annotate(metadata, self._max_bytes))

    def redact(self, id: str) -> OneT:
        """Remove the data of a finished execution: `manager.redact(id).payload is None`.

        Payload, result, progress, checkpoints and log are removed, and errors become "redacted",
        also in the history. Status, times, worker, metadata and key stay, so a repeated `create`
        with the key returns it. Backups and copies are not changed.
        """
        return self._apply(id, transitions.redact())

    def claim(self, type: str | None = None, *, limit: int = 1, worker: str | None = None) -> ManyT:
        """Start waiting executions, the longest due first: `manager.claim("mail", limit=10)`.

        From pending or retrying, once due. Concurrent callers never get the same execution. On
        PostgreSQL, rows locked by other transactions are skipped. Claim only what you process
        concurrently: heartbeats start when the block of `attempt` is entered.

        Args:
            type: only this type; by default any.
            limit: the maximum number of executions, 1 to 10,000.
            worker: the name of the worker, 1 to 255 characters.

        Returns:
            The started executions, ordered by id, each to be passed to `attempt`; an empty list if
            none is due.

        Raises:
            InvalidValue: an argument is invalid.
        """
        batch = check_batch(transitions.claim(worker), type, limit)
        return cast("ManyT", self._store.update_many(batch))

    def sweep(
        self,
        *,
        stalled_after: timedelta | None = None,
        type: str | None = None,
        retry: bool = False,
        limit: int = 100,
    ) -> ManyT:
        """Time out abandoned executions: `manager.sweep(stalled_after=timedelta(hours=1))`.

        Running ones that are past their deadline (error code `timeout`) or, with `stalled_after`,
        without a heartbeat for that long (error code `stalled`). A start, a progress update and a
        checkpoint count as heartbeats.

        Args:
            stalled_after: several heartbeat intervals.
            type: only this type; by default any.
            retry: allow another attempt of those that have one left: they become retrying.
            limit: the maximum number of executions, 1 to 10,000: one statement.

        Returns:
            The executions that it timed out, ordered by id. If there are `limit` of them, there
            may be more.

        Raises:
            InvalidValue: an argument is invalid.
        """
        batch = check_batch(transitions.sweep(stalled_after, retry=retry), type, limit)
        return cast("ManyT", self._store.update_many(batch))

    def attempt(
        self,
        id: str | Execution,
        *,
        worker: str | None = None,
        retry_on: Exceptions = (),
        backoff: Backoff | None = None,
        heartbeat: timedelta | None = None,
    ) -> AttemptT:
        """Make an attempt: `with manager.attempt(id, retry_on=TimeoutError) as attempt: ...`.

        Entering the block starts the execution. Leaving it completes the execution with
        `attempt.result`. An exception that leaves the block fails the execution and is raised
        again. KeyboardInterrupt, SystemExit and asyncio.CancelledError are failures with the code
        `interrupted`, always retryable.

        Args:
            id: the id of an execution; or an execution that `claim` or `start` returned, which is
                not started again.
            worker: the name of the worker, 1 to 255 characters.
            retry_on: the exceptions after which another attempt may help, as in `except`; an
                exception group counts if all of its exceptions do.
            backoff: the delay before `claim` may start the next attempt.
            heartbeat: the interval at which to send heartbeats in the background. Not available
                inside a transaction of the caller's, nor with in-memory SQLite.

        Returns:
            The attempt, for `with`. Entering its block raises what `start` raises, or
            `AttemptLost` if another attempt has taken over a started execution. So do its writes.

        Raises:
            InvalidValue: an argument is invalid.
        """
        options = check_options(
            id,
            worker=worker,
            retry_on=retry_on,
            backoff=backoff,
            heartbeat=heartbeat,
            joined=self._joined,
            shares_connection=getattr(self._store, "shares_connection", False),
            max_bytes=self._max_bytes,
        )
        return self._attempt_class(self._store, options)

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
    ) -> Callable[[FunctionT], FunctionT]:
        """Make each call of a function an execution: `@manager.tracked("mail", max_attempts=3)`.

        A call creates the execution, makes its attempts one after the other, and returns the
        result as JSON has it. With a key, a later call returns that result without running; if
        the execution failed or timed out, it makes the next attempt. A function with a keyword
        parameter `attempt` gets the attempt (give it a default, for type checkers).

        Args:
            type: the kind of work, 1 to 255 characters.
            idempotency_key: computes the key from the function's arguments.
            payload: computes the payload from the function's arguments.
            max_attempts: the maximum number of attempts.
            timeout: the maximum run time of one attempt.
            worker: the name of the worker, 1 to 255 characters.
            retry_on: the exceptions after which to try again, as in `except`.
            backoff: the delay before each further attempt; none by default.
            heartbeat: the interval at which to send heartbeats in the background.

        Returns:
            A decorator. The decorated function raises what the function raises, and
            `AlreadyRunning`, `AttemptLost`, `MaxRetriesExceeded`, or `InvalidStateTransition` if
            the execution was cancelled.

        Raises:
            InvalidValue: an argument is invalid, or the function is async and the manager is not,
                or the reverse.
        """
        options = TrackedOptions(
            type=type,
            idempotency_key=idempotency_key,
            payload=payload,
            max_attempts=max_attempts,
            timeout=timeout,
            max_bytes=self._max_bytes,
        )

        def new_attempt(id: str) -> AttemptT:
            return self.attempt(
                id, worker=worker, retry_on=retry_on, backoff=backoff, heartbeat=heartbeat
            )

        new_attempt(validation.new_id())  # refuses invalid options now, not at the first call
        return lambda function: self._track(options, new_attempt, function)

    def get(self, id: str) -> OneT:
        """Read one execution: `manager.get(id).status`.

        Raises ExecutionNotFound if there is none, also if the id is not a UUID.
        """
        return cast("OneT", self._run(verbs.get(self._store, id)))

    def find_by_idempotency_key(self, key: str) -> FoundT:
        """Return the holder of a key, or None: `manager.find_by_idempotency_key("ship-7")`."""
        key = validation.name("key", key)
        return cast("FoundT", self._store.find_by_idempotency_key(key))

    def delete(self, id: str) -> NoneT:
        """Delete an execution in any status, with its history and log: `manager.delete(id)`.

        Its children and replays lose the link to it.
        """
        return cast("NoneT", self._run(verbs.delete(self._store, id)))

    def prune(
        self,
        older_than: timedelta,
        *,
        status: ExecutionStatus | str | Iterable[ExecutionStatus | str] | None = None,
        type: str | None = None,
        keys_older_than: timedelta | None = None,
        limit: int = 1000,
    ) -> CountT:
        """Delete executions that finished long ago: `manager.prune(timedelta(days=30))`.

        With their history and log, the earliest finished first. It never deletes a live execution
        or an ancestor of one. It skips rows that other transactions are changing, and rows whose
        children or replays they are changing: the next call deletes those. An idempotency key is
        deleted with its execution, and no longer prevents a repeat.

        Args:
            older_than: the minimum time since the execution finished.
            status: one or several of completed, failed, timed_out and cancelled; by default all.
            type: only this type; by default any.
            keys_older_than: the same as `older_than`, for executions with an idempotency key.
            limit: the maximum number of executions, 1 to 10,000: one statement.

        Returns:
            The number of deleted executions. If it is `limit`, there may be more: call again.

        Raises:
            InvalidValue: an argument is invalid, such as a status that is not final.
        """
        request = check_prune_request(older_than, status, type, keys_older_than, limit)
        return cast("CountT", self._store.prune(request))

    def within(self, transaction: TransactionT) -> Self:
        """Join the caller's transaction: `manager.within(session).create("ship")`.

        The returned manager's writes commit or roll back with the caller's own rows. It never
        commits, and a refusal leaves the transaction usable.

        Args:
            transaction: an SQLAlchemy Connection or Session; with asyncio AsyncConnection or
                AsyncSession.

        Raises:
            InvalidValue: it is neither.
            NotImplementedError: the store cannot join a transaction.
        """
        inside = copy(self)
        inside._store = store_within(self._store, transaction)  # noqa: SLF001
        inside._joined = True  # noqa: SLF001
        return inside

    def close(self) -> NoneT:
        """Close the connections of a manager that `connect` returned: `manager.close()`.

        An engine of the caller's own stays open.
        """
        return cast("NoneT", self._run(verbs.close(self._store)))

    def list(
        self,
        *,
        status: ExecutionStatus | str | Iterable[ExecutionStatus | str] | None = None,
        type: str | None = None,
        parent_id: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> ManyT:
        """Return executions, newest first: `manager.list(status="failed", before=last.id)`.

        Args:
            status: one or several statuses; by default any.
            type: only this type; by default any.
            parent_id: only the children of this execution.
            limit: the maximum number of executions, 1 to 10,000.
            before: only ids below this one: the last id of a page asks for the next page.

        Returns:
            At most `limit` executions; an empty list if there are none.

        Raises:
            ExecutionNotFound: `parent_id` is not a UUID.
            InvalidValue: `before` is not a UUID, or another argument is invalid.
        """
        page = check_page(status, type, parent_id, limit, before)
        return cast("ManyT", self._store.list(page))

    def _sweep_one(self, execution: Execution, *, stalled_after: timedelta | None = None) -> FoundT:
        """Sweep one execution; return it, or None if its attempt is neither late nor silent."""
        sweep = replace(transitions.sweep(stalled_after), attempt=execution.attempts)
        return cast("FoundT", self._store.update(execution.id, sweep))

    def _apply(self, id: str, transition: Transition, by: str | None = None) -> OneT:
        if by is not None:
            transition = replace(transition, actor=validation.name("by", by))
        return cast("OneT", self._run(verbs.apply(self._store, id, transition)))
