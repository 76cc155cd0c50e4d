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
    """On what terms an attempt is made."""

    id: str
    started: Execution | None
    """The execution, where the attempt has been started already."""
    start: Transition
    retry_on: tuple[type[BaseException], ...]
    backoff: Backoff | None
    heartbeat: timedelta | None
    joined: bool
    """Whether all of it is part of a transaction of the caller's."""
    alone: bool
    """Whether it may use the store in the background, while its block is at work."""
    max_bytes: int


def check_options(
    id: str | Execution,
    *,
    worker: str | None,
    retry_on: Exceptions,
    backoff: Backoff | None,
    heartbeat: timedelta | None,
    joined: bool,
    alone: bool,
    max_bytes: int,
) -> AttemptOptions:
    """Check on what terms a caller asks for an attempt."""
    started = id if isinstance(id, Execution) else None
    if started and started.status is not RUNNING:
        raise InvalidValue(
            "id", f"must be what claim or start returned, and this is {started.status}: give its id"
        )
    if started and worker is not None:
        raise InvalidValue("worker", "was named when the attempt started: claim(worker=...)")
    several = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if not all(isinstance(each, type) and issubclass(each, BaseException) for each in several):
        raise InvalidValue("retry_on", "must be an exception class, or a tuple of them")
    if backoff is not None and not isinstance(backoff, Backoff):
        raise InvalidValue("backoff", "must be a Backoff")
    if heartbeat is not None and (joined or not alone):
        raise InvalidValue(
            "heartbeat", "cannot share a connection: neither a transaction's nor in-memory SQLite's"
        )
    return AttemptOptions(
        id=validation.execution_id(started.id if started else id),
        started=started,
        start=transitions.start(worker),
        retry_on=several,
        backoff=backoff,
        heartbeat=None if heartbeat is None else validation.duration("heartbeat", heartbeat),
        joined=joined,
        alone=alone and not joined,
        max_bytes=max_bytes,
    )
