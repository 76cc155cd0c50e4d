"""What both colours of an attempt decide without asking a store: what to write, and when."""

import logging
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from . import transitions, values
from .backoff import Backoff
from .errors import AttemptLost, ConcurrentUpdate, ExecutionProblem, InvalidValue
from .execution import Execution, ExecutionError, ExecutionStatus
from .transitions import RETRYING, RUNNING, Transition
from .values import Entry

Exceptions = type[BaseException] | tuple[type[BaseException], ...]
"""What an `except` takes."""

INTERRUPTED: Final = "interrupted"
"""The code of the failure of a block that was left because its process or its task ends."""

logger: Final = logging.getLogger("execution_core")


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms an attempt is made."""

    id: str
    started: Execution | None
    """The execution, where the attempt has been started already."""
    start: Transition
    retry_on: Exceptions
    backoff: Backoff | None
    heartbeat: timedelta | None
    max_bytes: int


def terms(
    id: str | Execution,
    *,
    worker: str | None,
    retry_on: Exceptions,
    backoff: Backoff | None,
    heartbeat: timedelta | None,
    joined: bool,
    max_bytes: int,
) -> Terms:
    """Check on what terms a caller asks for an attempt."""
    started = id if isinstance(id, Execution) and id.status is RUNNING else None
    if started and worker is not None:
        raise InvalidValue("worker", "is named by whoever starts an attempt, and this one runs")
    if heartbeat is not None and joined:
        raise InvalidValue("heartbeat", "would be seen by nobody until the transaction commits")
    return Terms(
        id=values.execution_id(id.id if isinstance(id, Execution) else id),
        started=started,
        start=transitions.start(worker),
        retry_on=exceptions(retry_on),
        backoff=backoff_of(backoff),
        heartbeat=None if heartbeat is None else values.duration("heartbeat", heartbeat),
        max_bytes=max_bytes,
    )


def exceptions(value: object) -> Exceptions:
    """Return what an `except` takes."""
    several = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(each, type) and issubclass(each, BaseException) for each in several):
        raise InvalidValue("retry_on", "must be an exception class, or a tuple of them")
    return several


def backoff_of(value: object) -> Backoff | None:
    """Return a backoff, or None."""
    if value is not None and not isinstance(value, Backoff):
        raise InvalidValue("backoff", "must be a Backoff")
    return value


class Ownership:
    """An attempt's hold on its execution: what it knows of it, and what it would write."""

    execution: Execution
    """The execution as this attempt found it when it started, payload included."""
    checkpoints: dict[str, Any]
    """The checkpoints as this attempt found them, and what it has set since."""
    result: Any = None
    """What the execution is to be completed with: any JSON value."""
    retry_after: timedelta | None = None
    """How long the next attempt is to wait, once this one has failed and may be followed by one."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    @property
    def number(self) -> int:
        """Which attempt this is, from 1 on: what other verbs take as `attempt=`."""
        return self.execution.attempts

    def _own(self, execution: Execution) -> None:
        self.execution = execution
        self.checkpoints = dict(execution.checkpoints)

    def _wrote(self, transition: Transition) -> None:
        entry = transition.given.get("checkpoints")
        if isinstance(entry, Entry):
            self.checkpoints[entry.key] = entry.value.value

    def _lost(self, transition: Transition, found: Execution | None) -> ExecutionProblem:
        """Say why nothing was written, from the execution that was found afterwards."""
        problem = transitions.refusal(transition, self._terms.id, found)
        if isinstance(problem, ConcurrentUpdate):
            return problem
        return AttemptLost(self._terms.id, self.number, found)

    def _is_told(self, error: BaseException) -> bool:
        """Tell whether an error is this attempt's own loss, of which nothing is to be recorded."""
        own = (self._terms.id, self.number)
        return isinstance(error, AttemptLost) and (error.execution_id, error.attempt) == own

    def _progress(self, current: int, total: int, message: str | None) -> Transition:
        return transitions.update_progress(current, total, message, None, self.number)

    def _checkpoint(self, key: str, value: object) -> Transition:
        return transitions.checkpoint(key, value, self.number, self._terms.max_bytes)

    def _advance(
        self, current: int, total: int, key: str, value: object, message: str | None
    ) -> Transition:
        progress = self._progress(current, total, message)
        return transitions.advance(progress, self._checkpoint(key, value))

    def _heartbeat(self) -> Transition:
        return transitions.heartbeat(self.number)

    def _complete(self) -> Transition:
        return transitions.complete(self.result, self.number, self._terms.max_bytes)

    def _fail(self, error: BaseException) -> Transition:
        """Describe why the block was left."""
        if not isinstance(error, Exception):  # KeyboardInterrupt, SystemExit, CancelledError, …
            told = ExecutionError.from_exception(error).model_copy(update={"code": INTERRUPTED})
            return transitions.fail(told, True, None, self.number)  # noqa: FBT003 - retryable
        retryable = isinstance(error, self._terms.retry_on)
        backoff = self._terms.backoff
        delay = backoff.delay(self.number) if backoff and retryable else None
        return transitions.fail(error, retryable, delay, self.number)

    def _failed(self, transition: Transition, status: ExecutionStatus | None) -> None:
        if status is RETRYING:
            delay = transition.given["retry_after"]
            self.retry_after = delay if isinstance(delay, timedelta) else timedelta(0)

    def _not_recorded(self) -> None:
        logger.warning(
            "Attempt %d of execution %s failed, and that could not be recorded",
            *(self.number, self._terms.id),
            exc_info=True,
        )

    def _not_beaten(self) -> None:
        logger.warning(
            "No heartbeat of attempt %d of execution %s could be recorded",
            *(self.number, self._terms.id),
            exc_info=True,
        )


class Walk:
    """How far an iteration is, and when that is to be written."""

    def __init__(self, items: object, key: str, every: int, checkpoints: Mapping[str, Any]) -> None:
        self._key = values.name("checkpoint", key)
        self._every = values.integer("every", every, 1, values.MAX_INTEGER)
        self._total = len(items) if isinstance(items, Sized) else None
        self.done = 0
        if key in checkpoints:
            last = checkpoints[key]
            whole = isinstance(last, int) and not isinstance(last, bool)
            if not whole or not 0 <= last < values.MAX_BIG_INTEGER:
                raise InvalidValue("checkpoint", f"{key!r} holds {last!r:.80}, which is no index")
            self.done = last + 1
        self._written = self.done

    def finished_one(self) -> bool:
        """Count an item; tell whether to write."""
        self.done += 1
        return self.done - self._written >= self._every

    def finished_all(self) -> bool:
        """Tell whether there is anything left to write at the end."""
        learnt = self._total is None
        if learnt:
            self._total = self.done
        return self.done > 0 and (learnt or self.done > self._written)

    def position(self) -> tuple[int, int, str, int]:
        """Return what to advance to: current, total, key and value."""
        self._written = self.done
        return self.done, self._total or 0, self._key, self.done - 1
