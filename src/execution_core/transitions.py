"""The state machine: which verb may move an execution from where to where, and what that changes.

This is the only place that knows source states. A transition is data: a store turns it into one
compare-and-set (`sql.statements` into one UPDATE), or calls `Transition.apply` on an object.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import cast

from . import values
from .errors import (
    ConcurrentUpdate,
    ExecutionNotFound,
    ExecutionProblem,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
    StaleAttempt,
)
from .execution import MAX_MESSAGE, Execution, ExecutionError, ExecutionStatus, ProgressInfo
from .values import MAX_JSON_BYTES, Entry, Json

PENDING, RUNNING, COMPLETED, FAILED, RETRYING, TIMED_OUT, CANCELLED = ExecutionStatus
LIVE = (PENDING, RUNNING, RETRYING)

Value = str | Json | Entry | ExecutionError | ProgressInfo | None
"""What a caller gave, checked; a store keeps it in the field of the same name."""


class Change(Enum):
    """What a move does to one field of an execution."""

    GIVEN = "the transition's own value"
    MERGED = "the object with the transition's entry set, its other keys untouched"
    CLEARED = "None"
    NOW = "the store's time"
    DEADLINE = "the store's time plus the execution's timeout; None without one"
    NEXT_ATTEMPT = "attempts + 1"


GIVEN, MERGED, CLEARED, NOW, DEADLINE, NEXT_ATTEMPT = Change


class Move:
    """From any of `sources` to `target`, changing the named fields, and `updated_at` to now."""

    def __init__(
        self,
        sources: tuple[ExecutionStatus, ...],
        target: ExecutionStatus | None,
        *,
        needs_attempt: bool = False,
        **changes: Change,
    ) -> None:
        self.sources = sources
        self.target = target  # None: the status stays
        self.needs_attempt = needs_attempt  # allowed only while attempts < max_attempts
        self.changes = changes

    def allows(self, execution: Execution) -> bool:
        """Tell whether this move may be made from where the execution stands."""
        return execution.status in self.sources and (
            not self.needs_attempt or execution.attempts < execution.max_attempts
        )


class Rule:
    """A verb and its moves, of which the first allowed one is made.

    In the status `settled` the verb finds its work done and answers the execution as it is.
    """

    def __init__(self, verb: str, *moves: Move, settled: ExecutionStatus | None = None) -> None:
        self.verb = verb
        self.moves = moves
        self.settled = settled

    @property
    def sources(self) -> tuple[ExecutionStatus, ...]:
        """Every status from which the verb may be called."""
        return tuple(s for s in ExecutionStatus if any(s in move.sources for move in self.moves))


START = Rule(
    "start",
    Move(
        (PENDING, RETRYING),
        RUNNING,
        attempts=NEXT_ATTEMPT,
        started_at=NOW,
        deadline_at=DEADLINE,
        completed_at=CLEARED,
        error=CLEARED,
        worker=GIVEN,
        needs_attempt=True,
    ),
)
COMPLETE = Rule("complete", Move((RUNNING,), COMPLETED, result=GIVEN, completed_at=NOW))
FAIL = Rule("fail", Move((RUNNING, RETRYING), FAILED, error=GIVEN, completed_at=NOW))
FAIL_RETRYABLE = Rule(
    "fail", Move((RUNNING,), RETRYING, error=GIVEN, needs_attempt=True), *FAIL.moves
)
TIMEOUT = Rule("timeout", Move((RUNNING,), TIMED_OUT, error=GIVEN, completed_at=NOW))
CANCEL = Rule("cancel", Move((PENDING, RUNNING), CANCELLED, completed_at=NOW))
CANCEL_WITH_REASON = Rule(
    "cancel", Move((PENDING, RUNNING), CANCELLED, completed_at=NOW, metadata=MERGED)
)
RETRY = Rule(
    "retry",
    Move((FAILED, TIMED_OUT), RETRYING, error=CLEARED, completed_at=CLEARED, needs_attempt=True),
    settled=RETRYING,
)
UPDATE_PROGRESS = Rule("update_progress", Move(LIVE, None, progress=GIVEN))
CHECKPOINT = Rule("checkpoint", Move(LIVE, None, checkpoints=MERGED))

RULES = (
    *(START, COMPLETE, FAIL_RETRYABLE, FAIL, TIMEOUT, CANCEL, CANCEL_WITH_REASON, RETRY),
    *(UPDATE_PROGRESS, CHECKPOINT),
)

TIMED_OUT_ERROR = ExecutionError(message="Execution timed out", code="timeout", retryable=True)


@dataclass(frozen=True, slots=True)
class Transition:
    """A rule, the values it needs, and the attempt that must still own the execution, if any."""

    rule: Rule
    given: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    attempt: int | None = None

    def apply(self, execution: Execution, now: datetime) -> Execution | None:
        """Return the execution after the first allowed move, or None when none is allowed.

        What a store without SQL does under its own lock: `moved = transition.apply(found, now)`.
        """
        move = next((move for move in self.rule.moves if move.allows(execution)), None)
        if move is None or self.attempt not in (None, execution.attempts):
            return None
        update = {
            name: self._changed(name, how, execution, now) for name, how in move.changes.items()
        }
        update |= {"status": move.target or execution.status, "updated_at": now}
        return execution.model_copy(update=update)

    def _changed(self, name: str, how: Change, execution: Execution, now: datetime) -> object:
        given = self.given.get(name)
        match how:
            case Change.GIVEN:
                return given.value if isinstance(given, Json) else given
            case Change.MERGED:
                entry = cast("Entry", given)
                return {**getattr(execution, name), entry.key: entry.value.value}
            case Change.CLEARED:
                return None
            case Change.NOW:
                return now
            case Change.DEADLINE:
                return execution.timeout and now + execution.timeout
            case Change.NEXT_ATTEMPT:
                return execution.attempts + 1


def start(worker: str | None) -> Transition:
    """Pending or retrying → running: the next attempt, and when it is overdue."""
    return Transition(START, {"worker": None if worker is None else values.name("worker", worker)})


def complete(result: object, attempt: int | None, max_bytes: int = MAX_JSON_BYTES) -> Transition:
    """Running → completed, with a result."""
    checked = None if result is None else values.to_json("result", result, max_bytes)
    return Transition(COMPLETE, {"result": checked}, _fence(attempt))


def fail(
    error: ExecutionError | BaseException | str, retryable: bool | None, attempt: int | None
) -> Transition:
    """Running → retrying, while another attempt may help and is left; else → failed.

    From retrying it gives up: → failed, whatever the error says.
    """
    if isinstance(error, BaseException):
        error = ExecutionError.from_exception(error)
    elif isinstance(error, str):
        error = ExecutionError(message=error)
    elif not isinstance(error, ExecutionError):
        raise InvalidValue("error", "must be an ExecutionError, an exception or a text")
    # Made anew from its texts: a copy or a subclass may hold what a database cannot.
    error = ExecutionError(
        message=str(error.message),
        code=None if error.code is None else str(error.code),
        stack=None if error.stack is None else str(error.stack),
        retryable=error.retryable if retryable is None else values.flag("retryable", retryable),
    )
    rule = FAIL_RETRYABLE if error.retryable else FAIL
    return Transition(rule, {"error": error}, _fence(attempt))


def timeout(attempt: int | None) -> Transition:
    """Running → timed_out."""
    return Transition(TIMEOUT, {"error": TIMED_OUT_ERROR}, _fence(attempt))


def cancel(reason: str | None) -> Transition:
    """Pending or running → cancelled; a reason goes into the metadata."""
    if reason is None:
        return Transition(CANCEL)
    checked = values.to_json("reason", values.text("reason", reason, MAX_MESSAGE))
    return Transition(CANCEL_WITH_REASON, {"metadata": Entry("cancellation_reason", checked)})


def retry() -> Transition:
    """Failed or timed_out → retrying, while an attempt is left; retrying is done already."""
    return Transition(RETRY)


def update_progress(
    current: int, total: int, message: str | None, percent: float | None, attempt: int | None
) -> Transition:
    """Live: replace the progress, message included."""
    progress = values.progress(current, total, message, percent)
    return Transition(UPDATE_PROGRESS, {"progress": progress}, _fence(attempt))


def checkpoint(
    key: str, value: object, attempt: int | None, max_bytes: int = MAX_JSON_BYTES
) -> Transition:
    """Live: set one checkpoint."""
    entry = Entry(values.name("key", key), values.to_json("value", value, max_bytes))
    return Transition(CHECKPOINT, {"checkpoints": entry}, _fence(attempt))


def _fence(attempt: int | None) -> int | None:
    return None if attempt is None else values.integer("attempt", attempt, 0, values.MAX_INTEGER)


def unmoved(transition: Transition, id: str, found: Execution | None) -> Execution:
    """Answer for a transition that matched nothing, from the row that was found afterwards.

    Returns:
        The execution as it is, where the verb finds its work already done.

    Raises:
        ExecutionProblem: the `refusal` otherwise.
    """
    if found is not None and found.status == transition.rule.settled:
        return found
    raise refusal(transition, id, found)


def refusal(transition: Transition, id: str, found: Execution | None) -> ExecutionProblem:
    """Say why a transition matched nothing, from the row that was found afterwards."""
    rule = transition.rule
    if found is None:
        return ExecutionNotFound(id)
    moves = [move for move in rule.moves if found.status in move.sources]
    if not moves:
        return InvalidStateTransition(
            id, rule.verb, found.status, rule.moves[-1].target, rule.sources
        )
    if not any(move.allows(found) for move in moves):
        return MaxRetriesExceeded(id, found.attempts, found.max_attempts)
    if transition.attempt not in (None, found.attempts):
        return StaleAttempt(id, transition.attempt, found.attempts)
    return ConcurrentUpdate(rule.verb, id)
