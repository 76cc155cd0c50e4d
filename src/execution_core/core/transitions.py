"""Transitions: a rule of the state machine with the values of one call, one constructor per verb.

Each constructor checks its arguments. A store makes one compare-and-set of a transition, or calls
its `apply`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, cast

from . import json_values, state_machine, validation
from .errors import (
    ConcurrentUpdate,
    ExecutionNotFound,
    ExecutionProblem,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
    StaleAttempt,
)
from .json_values import MAX_JSON_BYTES, Json, JsonMembers
from .models import (
    CANCELLATION_REASON,
    MAX_MESSAGE,
    Execution,
    ExecutionFailure,
    ExecutionStatus,
    ProgressInfo,
)
from .state_machine import (
    ATTEMPT_LEFT,
    CHILDREN_COMPLETED,
    COMPLETED,
    FINISHED,
    Change,
    Condition,
    FieldChange,
    Move,
    Rule,
)

MAX_EXTRA_ATTEMPTS: Final = 10_000
Value = str | int | Json | JsonMembers | ExecutionFailure | ProgressInfo | timedelta | None
"""A checked argument, for the field of its name; durations are added to times instead."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A rule, its values, and the attempt that must own the execution, if any."""

    rule: Rule
    values: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    attempt: int | None = None
    skip_locked: bool = False
    """Change nothing while another transaction holds a lock on the row; a store may ignore it."""
    actor: str | None = None
    """Who makes it, for the history of a store that has one."""

    def apply(
        self,
        execution: Execution,
        now: datetime,
        children: Collection[ExecutionStatus] | None = None,
    ) -> Execution | None:
        """Return the execution after the first allowed move, or None if no move is allowed.

        For stores without SQL, under their own lock: `changed = transition.apply(found, now)`. If
        `rule.reads_children`, pass the statuses of its children as well: without them, no move that
        depends on them is allowed.
        """
        allowed = (m for m in self.rule.moves if self._allows(m, execution, now, children))
        move = next(allowed, None)
        if move is None or self.attempt not in (None, execution.attempts):
            return None
        update = {
            name: self._changed(name, how, execution, now) for name, how in move.changes.items()
        }
        update |= {"status": move.target or execution.status, "updated_at": now}
        return execution.model_copy(update=update)

    def _allows(
        self,
        move: Move,
        execution: Execution,
        now: datetime,
        children: Collection[ExecutionStatus] | None,
    ) -> bool:
        return execution.status in move.sources and all(
            self._is_met(condition, execution, now, children) for condition in move.when
        )

    def _is_met(
        self,
        condition: Condition,
        execution: Execution,
        now: datetime,
        children: Collection[ExecutionStatus] | None,
    ) -> bool:
        awaits_children = execution.awaits_children_since is not None
        match condition:
            case Condition.ATTEMPT_LEFT:
                return execution.attempts < execution.max_attempts
            case Condition.DUE:
                return execution.due_at is not None and execution.due_at <= now
            case Condition.OVERDUE:
                return execution.deadline_at is not None and execution.deadline_at < now
            case Condition.STALLED:
                beat, started = execution.heartbeat_at, execution.started_at
                # Manual SQL may start an attempt without setting heartbeat_at or started_at.
                if beat is None or started is None or beat < started:
                    beat = max(started or execution.updated_at, execution.updated_at)
                silent = beat < now - cast("timedelta", self.values["stalled_after"])
                return silent and not awaits_children
            case Condition.AWAITS_CHILDREN:
                return awaits_children
            case Condition.CHILDREN_COMPLETED | Condition.CHILDREN_FINISHED:
                finished = (COMPLETED,) if condition is CHILDREN_COMPLETED else FINISHED
                return children is not None and {*children} <= {*finished}

    def _changed(self, name: str, how: FieldChange, execution: Execution, now: datetime) -> object:
        if not isinstance(how, Change):
            return _plain(how)
        new = self.values.get(name)
        value: object
        match how:
            case Change.SET:
                value = _plain(new)
            case Change.SET_KEY:
                members = cast("JsonMembers", new).values.items()
                value = getattr(execution, name) | {key: each.value for key, each in members}
            case Change.CLEARED:
                value = None
            case Change.NOW:
                value = now
            case Change.DEADLINE:
                value = execution.timeout and now + execution.timeout
            case Change.DELAYED:
                delay = cast("timedelta | None", self.values["retry_after"])
                value = now + (delay or timedelta(0))
            case Change.EXTENDED:
                allowed = execution.attempts + cast("int", self.values["extra_attempts"])
                value = max(getattr(execution, name), allowed)
            case Change.INCREASED:
                value = min(getattr(execution, name) + 1, validation.MAX_INTEGER)
        return value


def _plain(value: object) -> object:
    return value.value if isinstance(value, Json) else value


def start(worker: str | None) -> Transition:
    """Start the next attempt: pending or retrying → running."""
    checked = None if worker is None else validation.name("worker", worker)
    return Transition(state_machine.START, {"worker": checked})


def claim(worker: str | None) -> Transition:
    """Start the next attempt if it is due: pending or retrying → running."""
    return Transition(state_machine.CLAIM, start(worker).values)


def complete(result: object, attempt: int | None, max_bytes: int = MAX_JSON_BYTES) -> Transition:
    """Finish with a result: running → completed."""
    checked = None if result is None else json_values.to_json("result", result, max_bytes)
    return _transition(state_machine.COMPLETE, {"result": checked}, attempt)


def fail(
    error: ExecutionFailure | BaseException | str,
    retryable: bool | None,
    retry_after: timedelta | None,
    attempt: int | None,
) -> Transition:
    """Record a failure: running → retrying or failed, retrying → failed."""
    delay = None if retry_after is None else validation.delay("retry_after", retry_after)
    if retryable is not None:
        validation.flag("retryable", retryable)
    elif delay is not None:
        retryable = True  # a delay is one before another attempt
    if delay is not None and not retryable:
        raise InvalidValue("retry_after", "makes no sense with retryable=False")
    if isinstance(error, BaseException):
        error = ExecutionFailure.from_exception(error)
    elif isinstance(error, str):
        error = ExecutionFailure(message=error)
    elif not isinstance(error, ExecutionFailure):
        raise InvalidValue("error", "must be an ExecutionFailure, an exception or a string")
    # Built again from its texts: a copy or a subclass may contain what a database cannot store.
    error = ExecutionFailure(
        message=str(error.message),
        code=None if error.code is None else str(error.code),
        stack=None if error.stack is None else str(error.stack),
        retryable=error.retryable if retryable is None else retryable,
    )
    if not error.retryable:
        return _transition(state_machine.FAIL, {"error": error}, attempt)
    values = {"error": error, "retry_after": delay}
    return _transition(state_machine.FAIL_RETRYABLE, values, attempt)


def timeout(attempt: int | None) -> Transition:
    """Time out: running → timed_out."""
    return _transition(state_machine.TIMEOUT, {}, attempt)


def sweep(stalled_after: timedelta | None, *, retry: bool = False) -> Transition:
    """Time out if overdue, or without a heartbeat for `stalled_after`: running → timed_out.

    With `retry`, running → retrying while an attempt is left.
    """
    retry = validation.flag("retry", retry)
    if stalled_after is None:
        return Transition(
            state_machine.SWEEP_OVERDUE_RETRY if retry else state_machine.SWEEP_OVERDUE
        )
    checked = validation.duration("stalled_after", stalled_after)
    rule = state_machine.SWEEP_RETRY if retry else state_machine.SWEEP
    return Transition(rule, {"stalled_after": checked})


def cancel(reason: str | None) -> Transition:
    """Cancel: pending, running or retrying → cancelled; a reason is stored in the metadata."""
    if reason is None:
        return Transition(state_machine.CANCEL)
    checked = json_values.to_json("reason", validation.text("reason", reason, MAX_MESSAGE))
    entry = JsonMembers({CANCELLATION_REASON: checked})
    return Transition(state_machine.CANCEL_WITH_REASON, {"metadata": entry})


def retry(retry_after: timedelta | None = None, extra_attempts: int = 0) -> Transition:
    """Allow another attempt: failed or timed_out → retrying. A waiting execution becomes due."""
    delay = None if retry_after is None else validation.delay("retry_after", retry_after)
    extra = validation.integer("extra_attempts", extra_attempts, 0, MAX_EXTRA_ATTEMPTS)
    values: dict[str, Value] = {"retry_after": delay}
    if not extra:
        return Transition(state_machine.RETRY, values)
    return Transition(state_machine.RETRY_EXTENDED, values | {"extra_attempts": extra})


def release(attempt: int | None) -> Transition:
    """Hand the attempt back and allow another one in its place: running → retrying."""
    return _transition(state_machine.RELEASE, {}, attempt)


def finish_with_children(attempt: int | None) -> Transition:
    """Leave the end to the children: it stays running while one of them is live."""
    return _transition(state_machine.FINISH_WITH_CHILDREN, {}, attempt)


def end_with_children() -> Transition:
    """End with the last child: running → completed, or failed unless all are completed."""
    return Transition(state_machine.END_WITH_CHILDREN)


def heartbeat(attempt: int | None, *, skip_locked: bool = False) -> Transition:
    """Set `heartbeat_at` while running."""
    transition = _transition(state_machine.HEARTBEAT, {}, attempt)
    return replace(transition, skip_locked=skip_locked)


def update_progress(
    current: int, total: int, message: str | None, percent: float | None, attempt: int | None
) -> Transition:
    """Replace the whole progress, the message included, while live."""
    progress = validation.progress(current, total, message, percent)
    return _transition(state_machine.UPDATE_PROGRESS, {"progress": progress}, attempt)


def checkpoint(
    key: str, value: object, attempt: int | None, max_bytes: int = MAX_JSON_BYTES
) -> Transition:
    """Set one checkpoint while live."""
    key = validation.name("key", key)
    entry = JsonMembers({key: json_values.to_json("value", value, max_bytes)})
    return _transition(state_machine.CHECKPOINT, {"checkpoints": entry}, attempt)


def advance(progress: Transition, checkpoint: Transition) -> Transition:
    """Update the progress and set a checkpoint in one transition, while live."""
    values = {**progress.values, **checkpoint.values}
    return _transition(state_machine.ADVANCE, values, progress.attempt)


def annotate(metadata: object, max_bytes: int = MAX_JSON_BYTES) -> Transition:
    """Set keys of the metadata, in any status; the other keys stay."""
    checked = json_values.json_object("metadata", metadata, max_bytes).value
    if not checked:
        raise InvalidValue("metadata", "must have at least one key")
    values = {key: json_values.to_json("metadata", value) for key, value in checked.items()}
    return Transition(state_machine.ANNOTATE, {"metadata": JsonMembers(values)})


def redact() -> Transition:
    """Remove the data of a finished execution."""
    return Transition(state_machine.REDACT)


def log(attempt: int | None) -> Transition:
    """Change nothing: the guard of a log entry. With an attempt, only while it is running."""
    return _transition(state_machine.LOG, {}, attempt)


def _transition(rule: Rule, values: Mapping[str, Value], attempt: int | None) -> Transition:
    if attempt is None:
        return Transition(rule, values)
    attempt = validation.integer("attempt", attempt, 0, validation.MAX_INTEGER)
    return Transition(rule.for_attempt, values, attempt)


def refusal(transition: Transition, id: str, found: Execution | None) -> ExecutionProblem:
    """Return why a transition matched no row, from the execution as it was read afterwards."""
    rule = transition.rule
    if found is None:
        return ExecutionNotFound(id)
    moves = [move for move in rule.moves if found.status in move.sources]
    if not moves:
        return InvalidStateTransition(
            id, rule.verb, found.status, rule.moves[-1].target, rule.sources
        )
    if all(move.when == (ATTEMPT_LEFT,) for move in moves) and found.attempts >= found.max_attempts:
        return MaxRetriesExceeded(id, found.attempts, found.max_attempts, rule.verb)
    if transition.attempt not in (None, found.attempts):
        return StaleAttempt(id, transition.attempt, found.attempts)
    return ConcurrentUpdate(rule.verb, id)
