"""Transitions: a rule of the state machine with the values of one call, one constructor per verb.

Each constructor checks its arguments. A store makes one compare-and-set of a transition, or calls
its `apply`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import cast

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
from .json_values import MAX_JSON_BYTES, Json, JsonMember
from .models import CANCELLATION_REASON, MAX_MESSAGE, Execution, ExecutionFailure, ProgressInfo
from .state_machine import ATTEMPT_LEFT, Change, Condition, Move, Rule

Value = str | Json | JsonMember | ExecutionFailure | ProgressInfo | timedelta | None
"""A checked argument, for the field of its name; durations are added to times instead."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A rule, its values, and the attempt that must own the execution, if any."""

    rule: Rule
    values: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    attempt: int | None = None
    skip_locked: bool = False
    """Change nothing while another transaction holds a lock on the row; a store may ignore it."""

    def apply(self, execution: Execution, now: datetime) -> Execution | None:
        """Return the execution after the first allowed move, or None if no move is allowed.

        For stores without SQL, under their own lock: `changed = transition.apply(found, now)`.
        """
        move = next((move for move in self.rule.moves if self._allows(move, execution, now)), None)
        if move is None or self.attempt not in (None, execution.attempts):
            return None
        update = {
            name: self._changed(name, how, execution, now) for name, how in move.changes.items()
        }
        update |= {"status": move.target or execution.status, "updated_at": now}
        return execution.model_copy(update=update)

    def _allows(self, move: Move, execution: Execution, now: datetime) -> bool:
        if execution.status not in move.sources:
            return False
        match move.when:
            case None:
                return True
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
                return beat < now - cast("timedelta", self.values["stalled_after"])

    def _changed(
        self, name: str, how: Change | ExecutionFailure, execution: Execution, now: datetime
    ) -> object:
        new = self.values.get(name)
        value: object
        match how:
            case ExecutionFailure():
                value = how
            case Change.SET:
                value = new.value if isinstance(new, Json) else new
            case Change.SET_KEY:
                entry = cast("JsonMember", new)
                value = {**getattr(execution, name), entry.key: entry.value.value}
            case Change.CLEARED:
                value = None
            case Change.NOW:
                value = now
            case Change.DEADLINE:
                value = execution.timeout and now + execution.timeout
            case Change.DELAYED:
                delay = cast("timedelta | None", self.values["retry_after"])
                value = now + (delay or timedelta(0))
            case Change.NEXT_ATTEMPT:
                value = execution.attempts + 1
        return value


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
        retryable=error.retryable if retryable is None else validation.flag("retryable", retryable),
    )
    if not error.retryable:
        return _transition(state_machine.FAIL, {"error": error}, attempt)
    values = {"error": error, "retry_after": delay}
    return _transition(state_machine.FAIL_RETRYABLE, values, attempt)


def timeout(attempt: int | None) -> Transition:
    """Time out: running → timed_out."""
    return _transition(state_machine.TIMEOUT, {}, attempt)


def sweep(stalled_after: timedelta | None) -> Transition:
    """Time out if overdue, or without a heartbeat for `stalled_after`: running → timed_out."""
    if stalled_after is None:
        return Transition(state_machine.SWEEP_OVERDUE)
    checked = validation.duration("stalled_after", stalled_after)
    return Transition(state_machine.SWEEP, {"stalled_after": checked})


def cancel(reason: str | None) -> Transition:
    """Cancel: pending or running → cancelled; a reason is stored in the metadata."""
    if reason is None:
        return Transition(state_machine.CANCEL)
    checked = json_values.to_json("reason", validation.text("reason", reason, MAX_MESSAGE))
    entry = JsonMember(CANCELLATION_REASON, checked)
    return Transition(state_machine.CANCEL_WITH_REASON, {"metadata": entry})


def retry() -> Transition:
    """Allow the next attempt, if one is left: failed or timed_out → retrying."""
    return Transition(state_machine.RETRY)


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
    entry = JsonMember(validation.name("key", key), json_values.to_json("value", value, max_bytes))
    return _transition(state_machine.CHECKPOINT, {"checkpoints": entry}, attempt)


def advance(progress: Transition, checkpoint: Transition) -> Transition:
    """Update the progress and set a checkpoint in one transition, while live."""
    values = {**progress.values, **checkpoint.values}
    return _transition(state_machine.ADVANCE, values, progress.attempt)


def log(attempt: int | None) -> Transition:
    """Change nothing: the guard of a log entry. With an attempt, only while it is running."""
    return _transition(state_machine.LOG, {}, attempt)


def _transition(rule: Rule, values: Mapping[str, Value], attempt: int | None) -> Transition:
    if attempt is None:
        return Transition(rule, values)
    attempt = validation.integer("attempt", attempt, 0, validation.MAX_INTEGER)
    return Transition(rule.for_attempt, values, attempt)


def resolve_no_match(transition: Transition, id: str, found: Execution | None) -> Execution:
    """Return an execution that the verb has nothing to do with, or raise the refusal."""
    if found is not None and found.status == transition.rule.already_done_in:
        return found
    raise refusal(transition, id, found)


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
    if all(move.when is ATTEMPT_LEFT for move in moves) and found.attempts >= found.max_attempts:
        return MaxRetriesExceeded(id, found.attempts, found.max_attempts, rule.verb)
    if transition.attempt not in (None, found.attempts):
        return StaleAttempt(id, transition.attempt, found.attempts)
    return ConcurrentUpdate(rule.verb, id)
