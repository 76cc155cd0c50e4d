"""The options of an attempt, checked, and how they record a failure."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from ..core import transitions, validation
from ..core.backoff import Backoff
from ..core.errors import InvalidValue
from ..core.models import Execution, ExecutionFailure
from ..core.state_machine import RUNNING
from ..core.transitions import Transition

INTERRUPTED: Final = "interrupted"
"""Error code for a block left by KeyboardInterrupt, SystemExit or CancelledError."""

Exceptions = type[BaseException] | tuple[type[BaseException], ...]
"""What an `except` takes."""


@dataclass(frozen=True, slots=True)
class AttemptOptions:
    """The checked options of one attempt."""

    id: str
    started: Execution | None
    """The execution, if `claim` or `start` has started the attempt already."""
    start: Transition
    retry_on: tuple[type[BaseException], ...]
    backoff: Backoff | None
    heartbeat: timedelta | None
    cancel_task: bool
    """Whether to cancel the task in the block when a heartbeat finds that the attempt is lost."""
    joined: bool
    """Whether every write of the attempt belongs to a transaction of the caller's."""
    background: bool
    """Whether the attempt may use the store in the background while its block runs."""
    max_bytes: int

    def failure(self, error: BaseException, attempt: int) -> Transition:
        """Return the transition that records the error of a block."""
        if not isinstance(error, Exception):  # KeyboardInterrupt, SystemExit, CancelledError, …
            failure = ExecutionFailure.from_exception(error, retryable=True)
            failure = failure.model_copy(update={"code": INTERRUPTED})
            return transitions.fail(failure, None, None, attempt)
        retryable = self._retries(error)
        delay = self.backoff.delay(attempt) if self.backoff and retryable else None
        return transitions.fail(error, retryable, delay, attempt)

    def _retries(self, error: BaseException) -> bool:
        """Return whether `except retry_on` would catch an error; all of its parts for a group."""
        if any(kind in self.retry_on for kind in type(error).__mro__):
            return True
        return isinstance(error, BaseExceptionGroup) and all(map(self._retries, error.exceptions))


def check_options(
    id: str | Execution,
    *,
    worker: str | None,
    retry_on: Exceptions,
    backoff: Backoff | None,
    heartbeat: timedelta | None,
    cancel_task: bool,
    can_cancel_task: bool,
    joined: bool,
    shares_connection: bool,
    max_bytes: int,
) -> AttemptOptions:
    """Check the options that a caller gives for an attempt."""
    started = id if isinstance(id, Execution) else None
    if started and started.status is not RUNNING:
        raise InvalidValue(
            "id",
            "must be an id, or the running execution that claim or start returned:"
            f" this execution is {started.status}",
        )
    if started and worker is not None:
        raise InvalidValue("worker", "is already set for a started execution: claim(worker=...)")
    several = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if not all(isinstance(each, type) and issubclass(each, BaseException) for each in several):
        raise InvalidValue("retry_on", "must be an exception class, or a tuple of them")
    if backoff is not None and not isinstance(backoff, Backoff):
        raise InvalidValue("backoff", "must be a Backoff")
    if backoff is not None and not several:
        raise InvalidValue("backoff", "needs retry_on: without it, no failure is retried")
    if heartbeat is not None and (joined or shares_connection):
        raise InvalidValue(
            "heartbeat",
            "needs a connection of its own: it works neither inside a transaction of the caller's"
            " nor with in-memory SQLite",
        )
    if validation.flag("cancel_task", cancel_task):
        if not can_cancel_task:
            raise InvalidValue(
                "cancel_task",
                "needs asyncio: a thread cannot be cancelled, but look at attempt.lost",
            )
        if heartbeat is None:
            raise InvalidValue(
                "cancel_task", "needs heartbeat, which finds that the attempt is lost"
            )
    return AttemptOptions(
        id=validation.execution_id(started.id if started else id),
        started=started,
        start=transitions.start(worker),
        retry_on=several,
        backoff=backoff,
        heartbeat=None if heartbeat is None else validation.duration("heartbeat", heartbeat),
        cancel_task=cancel_task,
        joined=joined,
        background=not (joined or shares_connection),
        max_bytes=max_bytes,
    )
