"""A rule of the state machine as SQL: when a move is allowed, and what it assigns."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    literal_column,
    null,
    or_,
    select,
    tuple_,
)

from ...core.json_values import Json
from ...core.models import ExecutionFailure, ExecutionStatus
from ...core.state_machine import (
    COMPLETED,
    LIVE,
    Change,
    Condition,
    FieldChange,
    Move,
    Rule,
)
from ...core.validation import MAX_INTEGER
from ..schema.column_types import ClockTime
from ..schema.expressions import database_now, larger, later, latest, likely, merged, smaller
from ..schema.tables import executions
from .rows import PROGRESS

columns = executions.c
Assignments = dict[Column[Any], ColumnElement[Any]]


def where_clause(
    rule: Rule, now: ColumnElement[datetime], *, for_attempt: bool
) -> list[ColumnElement[bool]]:
    """Return the WHERE clause of a rule: the id, and a status that allows the verb."""
    guard = [columns.id == id_parameter(), rule_sql(rule, now)]
    if for_attempt:
        guard.append(columns.attempts == bindparam("old_attempt", type_=columns.attempts.type))
    return guard


def rule_sql(rule: Rule, now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Return the condition under which a move of a rule is allowed."""
    return or_(*(guard_sql(move, now) for move in rule.moves))


def guard_sql(move: Move, now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Return the condition under which a move is allowed."""
    sources = [status_literal(source) for source in move.sources]
    several = len(sources) > 1
    allowed = columns.status.in_(sources) if several else columns.status == sources[0]
    if Condition.DUE in move.when:
        # In the order of the partial indexes by due_at. By its index on the status, SQLite would
        # read everything that waits, and sort it.
        allowed = likely(allowed)
    return and_(allowed, *(condition_sql(condition, now) for condition in move.when))


def condition_sql(condition: Condition, now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Return what a move requires besides the status."""
    match condition:
        case Condition.ATTEMPT_LEFT:
            return columns.attempts < columns.max_attempts
        case Condition.DUE:
            return columns.due_at <= now
        case Condition.OVERDUE:
            return columns.deadline_at < now
        case Condition.STALLED:
            # A manual start leaves the heartbeat of the attempt before, or none.
            alive = columns.heartbeat_at >= columns.started_at
            started = latest(columns.started_at, columns.updated_at)
            seen = case((alive, columns.heartbeat_at), else_=started)
            silent = seen < later(now, -duration_parameter("stalled_after"))
            return and_(silent, columns.awaits_children_since.is_(None))
        case Condition.AWAITS_CHILDREN:
            return columns.awaits_children_since.is_not(None)
        case Condition.CHILDREN_COMPLETED:
            before = [status for status in ExecutionStatus if status < COMPLETED]
            behind = [status for status in ExecutionStatus if status > COMPLETED]
            ranges = [before, behind]
        case Condition.CHILDREN_FINISHED:
            ranges = [[*LIVE]]
    return and_(*(any_child(min(each), max(each)).is_(None) for each in ranges))


def any_child(first: ExecutionStatus, last: ExecutionStatus) -> ColumnElement[Any]:
    """Return 1 if a child has one of the statuses from the first to the last in their order.

    They are neighbours in the index of children; so are the live ones. Rows are compared, so that
    no planner reads another index instead, or all children.
    """
    child, one = executions.alias("child").c, literal_column("1", Integer)
    place = tuple_(child.parent_id, child.status)
    lowest, highest = (tuple_(columns.id, status_literal(each)) for each in (first, last))
    found = select(one).where(child.parent_id.is_not(None), place >= lowest, place <= highest)
    ordered = found.order_by(child.parent_id, child.status, child.id)
    return ordered.limit(one).scalar_subquery()


def assignments(
    moves: Sequence[Move], now: ColumnElement[datetime], not_before: ColumnElement[datetime]
) -> Assignments:
    """Return the assignments of the first move that the row allows.

    For `fail` with a retryable error: `status = CASE WHEN (running, attempt left) THEN 'retrying'
    ELSE 'failed' END`. A column that both moves assign alike, such as `error`, needs no CASE.
    """
    first, *others = moves
    assigned = _assign(first, not_before)
    if others:
        otherwise = assignments(others, now, not_before)
        for column in {**assigned, **otherwise}:
            this, that = assigned.get(column, column), otherwise.get(column, column)
            if not this.compare(that):
                assigned[column] = case((guard_sql(first, now), this), else_=that)
    return assigned


def _assign(move: Move, now: ColumnElement[datetime]) -> Assignments:
    token = value_parameter(columns.write_token)
    assigned: Assignments = {columns.updated_at: now, columns.write_token: token}
    if move.target is not None:
        assigned[columns.status] = status_literal(move.target)
        assigned[columns.actor] = value_parameter(columns.actor)
    for field, how in move.changes.items():
        for column in PROGRESS if field == "progress" else [columns[field]]:
            assigned[column] = _new_value(column, how, now)
    return assigned


def _new_value(
    column: Column[Any], how: FieldChange, now: ColumnElement[datetime]
) -> ColumnElement[Any]:
    changed: ColumnElement[Any]
    match how:
        case ExecutionFailure() | Json():
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
        case Change.EXTENDED:
            changed = larger(column, columns.attempts + bindparam("extra_attempts", type_=Integer))
        case Change.INCREASED:
            changed = smaller(column, literal_column(str(MAX_INTEGER - 1))) + literal_column("1")
    return changed


def time_expressions(*, clocked: bool) -> tuple[ColumnElement[datetime], ColumnElement[datetime]]:
    """Return the time to compare with, and the time to write, which never goes back."""
    if clocked:
        return clock_parameter(), clock_parameter()
    # PostgreSQL reads its clock before it waits for the lock of the row.
    return database_now(), latest(database_now(), columns.updated_at)


def clock_parameter() -> BindParameter[datetime]:
    """Return the parameter for the time of an injected clock."""
    return bindparam("now", type_=ClockTime)


def duration_parameter(name: str) -> BindParameter[int]:
    """Return the parameter for a caller's duration, in milliseconds."""
    return bindparam(f"{name}_ms", type_=BigInteger)


def status_literal(status: ExecutionStatus) -> ColumnElement[str]:
    """Return a status as a literal: the planner matches it with a partial index."""
    return literal_column(f"'{status.value}'", Text)


def value_parameter(column: Column[Any]) -> BindParameter[Any]:
    """Return the parameter for a column's new value."""
    return bindparam(f"new_{column.name}", type_=column.type)


def id_parameter() -> BindParameter[str]:
    """Return the parameter for the id of the execution."""
    return bindparam("old_id", type_=columns.id.type)
