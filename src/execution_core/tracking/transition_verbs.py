"""The verbs of the sync and the async manager that create or change one execution.

A verb returns the result of the store or of its steps, or a coroutine that returns it: the type
parameters say which.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, TypeVar, Unpack, cast, overload

from pydantic import BaseModel

from ..core import transitions, validation
from ..core.creation import CreateOptions, ReplayOptions, new_execution
from ..core.errors import InvalidValue
from ..core.json_values import MAX_JSON_BYTES
from ..core.log_lines import new_log_entry
from ..core.models import Execution, ExecutionFailure, LogLevel
from ..core.steps import Steps
from ..core.transitions import Transition
from . import verbs

OneT = TypeVar("OneT")
FoundT = TypeVar("FoundT")
EntryT = TypeVar("EntryT")


class TransitionVerbs(Generic[OneT, FoundT, EntryT]):
    """The verbs that create or change one execution."""

    _run: Callable[[Steps[Any]], Any]  # defined by the sync and the async manager

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

    @overload
    def create(self, type: str, payload: Any = None, **options: Unpack[CreateOptions]) -> OneT: ...
    @overload
    def create(self, payload: BaseModel, /, **options: Unpack[CreateOptions]) -> OneT: ...
    def create(
        self,
        type: str | BaseModel,
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
            type: the kind of work, 1 to 255 characters; or a pydantic model, which is the payload,
                and the name of its class the type: `manager.create(Order(id=7))`.
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
            InvalidStateTransition: the parent has finished.
            InvalidValue: an argument cannot be stored, or there is a model and a payload.
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

    def finish_with_children(self, id: str, *, attempt: int | None = None) -> OneT:
        """Let its children end it: `manager.finish_with_children(batch.id)`.

        From running; with `attempt`, only if that attempt is running. Once none of its children is
        live, it is completed if all of them are completed, else failed with the error code
        `children`. Until then it stays running: it needs no heartbeat, and its timeout applies.
        Call it when all children are created. Without children, it is completed at once.

        The end of the last child ends it, after that end has committed. After a crash, after a
        child that ended in a caller's transaction or was deleted, the next `sweep` ends it. What
        happens to a child afterwards, such as a `retry`, does not change it.
        """
        return self._apply(id, transitions.finish_with_children(attempt))

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

    def _sweep_one(self, execution: Execution, *, stalled_after: timedelta | None = None) -> FoundT:
        """Sweep one execution; return it, or None if its attempt is neither late nor silent."""
        sweep = replace(transitions.sweep(stalled_after), attempt=execution.attempts)
        steps = verbs.update(self._store, execution.id, sweep, joined=self._joined)
        return cast("FoundT", self._run(steps))

    def _apply(self, id: str, transition: Transition, by: str | None = None) -> OneT:
        if by is not None:
            transition = replace(transition, actor=validation.name("by", by))
        steps = verbs.apply(self._store, id, transition, joined=self._joined)
        return cast("OneT", self._run(steps))
