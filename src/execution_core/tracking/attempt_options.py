"""The options of an attempt, checked."""

from dataclasses import dataclass
from datetime import timedelta

from ..core import transitions, validation
from ..core.backoff import Backoff
from ..core.errors import InvalidValue
from ..core.models import Execution
from ..core.state_machine import RUNNING
from ..core.transitions import Transition

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
    joined: bool
    """Whether every write of the attempt belongs to a transaction of the caller's."""
    background: bool
    """Whether the attempt may use the store in the background while its block runs."""
    max_bytes: int


def check_options(
    id: str | Execution,
    *,
    worker: str | None,
    retry_on: Exceptions,
    backoff: Backoff | None,
    heartbeat: timedelta | None,
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
    if heartbeat is not None and (joined or shares_connection):
        raise InvalidValue(
            "heartbeat",
            "needs a connection of its own: it works neither inside a transaction of the caller's"
            " nor with in-memory SQLite",
        )
    return AttemptOptions(
        id=validation.execution_id(started.id if started else id),
        started=started,
        start=transitions.start(worker),
        retry_on=several,
        backoff=backoff,
        heartbeat=None if heartbeat is None else validation.duration("heartbeat", heartbeat),
        joined=joined,
        background=not (joined or shares_connection),
        max_bytes=max_bytes,
    )
