"""A rule of the state machine as SQL: when a move is allowed, and what it assigns."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    null,
    or_,
)

from ...core.models import ExecutionFailure, ExecutionStatus
from ...core.state_machine import Change, Condition, Move, Rule
from ..schema.column_types import Timestamp
from ..schema.expressions import database_now, later, latest, merged, now_or_later_of, unindexed
from ..schema.tables import executions
from .rows import PROGRESS

columns = executions.c


def where_clause(
    rule: Rule, now: ColumnElement[datetime], *, for_attempt: bool
) -> list[ColumnElement[bool]]:
    """What an execution must be for a rule to apply to it: the one given, and in such a status."""
    guard = [columns.id == id_parameter(), or_(*(guard_sql(move, now) for move in rule.moves))]
    if for_attempt:
        guard.append(columns.attempts == bindparam("old_attempt", type_=columns.attempts.type))
    return guard


def guard_sql(move: Move, now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Whether a move may be made of an execution."""
    sources = [status_literal(source) for source in move.sources]
    status: ColumnElement[str] = columns.status
    if move.when is Condition.DUE:
        # As the indexes have it, which are in the order of claims. By its status SQLite would read
        # all that waits, and sort it.
        status = unindexed(columns.status, type_=Text())
    allowed = status.in_(sources) if len(sources) > 1 else status == sources[0]
    return and_(allowed, *condition_sql(move.when, now))


def condition_sql(
    condition: Condition | None, now: ColumnElement[datetime]
) -> list[ColumnElement[bool]]:
    """Whether what a move asks besides the status is so."""
    match condition:
        case None:
            return []
        case Condition.ATTEMPT_LEFT:
            return [columns.attempts < columns.max_attempts]
        case Condition.DUE:
            return [due_at() <= now]
        case Condition.OVERDUE:
            return [columns.deadline_at < now]
        case Condition.STALLED:
            # A start by hand leaves the heartbeat of the attempt before, or none.
            beaten = columns.heartbeat_at >= columns.started_at
            by_hand = latest(columns.started_at, columns.updated_at)
            seen = case((beaten, columns.heartbeat_at), else_=by_hand)
            return [seen < later(now, -duration_parameter("stalled_after"))]


def due_at() -> ColumnElement[datetime]:
    """Since when, or from when on, a waiting execution may be claimed."""
    return func.coalesce(columns.retry_at, columns.created_at)


def assignments(
    moves: Sequence[Move], now: ColumnElement[datetime], not_before: ColumnElement[datetime]
) -> dict[Column[Any], ColumnElement[Any]]:
    """Assign what the first allowed move does, and the write's token."""
    token = {columns.write_token: value_parameter(columns.write_token)}
    return _assign_first_allowed(moves, now, not_before) | token


def _assign_first_allowed(
    moves: Sequence[Move], now: ColumnElement[datetime], not_before: ColumnElement[datetime]
) -> dict[Column[Any], ColumnElement[Any]]:
    """Assign what the first allowed move does; of several, the row itself decides.

    For `fail` of a retryable error: `status = CASE WHEN (running, attempt left) THEN 'retrying'
    ELSE 'failed' END`; what both moves assign alike, such as `error`, needs no CASE.
    """
    first, *others = moves
    assigned = _assign(first, not_before)
    if others:
        otherwise = _assign_first_allowed(others, now, not_before)
        for column in {**assigned, **otherwise}:
            this, that = assigned.get(column, column), otherwise.get(column, column)
            if not this.compare(that):
                assigned[column] = case((guard_sql(first, now), this), else_=that)
    return assigned


def _assign(move: Move, now: ColumnElement[datetime]) -> dict[Column[Any], ColumnElement[Any]]:
    assigned: dict[Column[Any], ColumnElement[Any]] = {columns.updated_at: now}
    if move.target is not None:
        assigned[columns.status] = status_literal(move.target)
    for field, how in move.changes.items():
        for column in PROGRESS if field == "progress" else [columns[field]]:
            assigned[column] = _new_value(column, how, now)
    return assigned


def _new_value(
    column: Column[Any], how: Change | ExecutionFailure, now: ColumnElement[datetime]
) -> ColumnElement[Any]:
    changed: ColumnElement[Any]
    match how:
        case ExecutionFailure():
            changed = bindparam(None, how, type_=column.type, unique=True)
        case Change.SET:
            changed = value_parameter(column)
        case Change.SET_KEY:
            without = bindparam(f"null_{column.name}", type_=Text)
            changed = merged(column, value_parameter(column), without)
        case Change.CLEARED:
            changed = null()
        case Change.NOW:
            changed = now
        case Change.DEADLINE:
            changed = later(now, columns.timeout_ms)
        case Change.DELAYED:
            changed = later(now, duration_parameter("retry_after"))
        case Change.NEXT_ATTEMPT:
            changed = columns.attempts + literal_column("1")
    return changed


def time_expressions(*, clocked: bool) -> tuple[ColumnElement[datetime], ColumnElement[datetime]]:
    """Return the time to compare with, by index, and the time to write, which never goes back."""
    if clocked:
        return clock_parameter(), clock_parameter()
    return database_now(), now_or_later_of(columns.updated_at)


def clock_parameter() -> BindParameter[datetime]:
    """The time of an injected clock."""
    return bindparam("now", type_=Timestamp)


def duration_parameter(name: str) -> BindParameter[int]:
    """A caller's duration, in milliseconds."""
    return bindparam(f"{name}_ms", type_=BigInteger)


def status_literal(status: ExecutionStatus) -> ColumnElement[str]:
    """A status in the statement's own text: a partial index serves what the planner can read."""
    return literal_column(f"'{status.value}'", Text)


def value_parameter(column: Column[Any]) -> BindParameter[Any]:
    """What a caller gave for a column."""
    return bindparam(f"new_{column.name}", type_=column.type)


def id_parameter() -> BindParameter[str]:
    """The id that a caller named."""
    return bindparam("old_id", type_=columns.id.type)
