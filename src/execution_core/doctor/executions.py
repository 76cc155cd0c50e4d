"""Check for executions that are late, and for gaps in their history."""

from datetime import datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    func,
    literal,
    or_,
    select,
    union,
)

from ..core.models import ExecutionStatus
from ..core.state_machine import CLAIM, LIVE, SWEEP, Move
from ..sql.schema.expressions import database_now, in_array, later
from ..sql.schema.tables import execution_history, executions
from ..sql.schema.views import executions_needing_attention
from ..sql.statements.transition_sql import condition_sql, guard_sql
from .finding import Checks, Finding, format_time, to_finding

NEWEST: Final = 1_000
"""Besides the live executions, the history of this many is checked."""


def execution_checks(connection: Connection, patience: int, *, whole: bool) -> Checks:
    """Return the checks of executions and of their history."""
    (overdue, stalled), (due,) = SWEEP.moves, CLAIM.moves
    now = database_now()
    before = later(now, literal(-patience, BigInteger))
    check = partial(_check_late, connection, patience)
    return {
        "overdue": lambda: check("overdue", overdue, now),
        "stalled": lambda: check("stalled", stalled, now),
        "unclaimed": lambda: check("unclaimed", due, before),
        "attention": lambda: _check_attention(connection),
        "history": lambda: _check_history(connection, whole=whole),
        "history_start": lambda: _check_history_start(connection, whole=whole),
    }


def _check_late(
    connection: Connection, patience: int, check: str, move: Move, now: ColumnElement[datetime]
) -> Finding:
    """Find what a sweep or a claim would find.

    The left side of its condition, of the first one if it has several, says since when.
    """
    (required,) = move.when
    condition: Any = condition_sql(required, now)
    first, *_ = getattr(condition, "clauses", [condition])
    since = first.left
    columns = executions.c
    query = (
        select(columns.id, columns.type, columns.worker, since, func.count().over())
        .where(guard_sql(move, now))
        .order_by(since)
        .limit(1)
    )
    wrong = [
        f"{count} found, the oldest since {format_time(began)}:"
        f" {id} ({type}{f', {worker}' if worker else ''})"
        for id, type, worker, began, count in connection.execute(
            query, {"stalled_after_ms": patience}
        )
    ]
    return to_finding(check, wrong, "none")


def _check_attention(connection: Connection) -> Finding:
    """Count what operators should look at; work that only waits gives no warning."""
    reason = executions_needing_attention.c.reason
    query = select(reason, func.count()).group_by(reason).order_by(reason)
    found = {name: f"{count} {name}" for name, count in connection.execute(query)}
    message = ", ".join(found.values())
    is_wrong = {"failed", "timed_out", "overdue", "silent"} & found.keys()
    return to_finding("attention", [message] if is_wrong else [], message or "nothing")


def _check_history(connection: Connection, *, whole: bool) -> Finding:
    e, h = executions.c, execution_history.c
    in_order: Any = {"partition_by": e.id, "order_by": h.seq}
    transitions = select(
        *(e.id, e.status, e.attempts, h.seq, h.from_status, h.to_status, h.attempt),
        func.row_number().over(**in_order).label("place"),
        func.lag(h.to_status).over(**in_order).label("before"),
        func.lead(h.seq).over(**in_order).label("next"),
    ).join_from(executions, execution_history, isouter=True)
    if not whole:
        transitions = transitions.where(_is_live_or_new())
    step = transitions.subquery().c
    ends_differently = or_(step.to_status != step.status, step.attempt != step.attempts)
    gaps = or_(
        step.seq.is_(None),
        step.seq != step.place,
        func.coalesce(step.from_status, "") != func.coalesce(step.before, ""),
        and_(step.next.is_(None), ends_differently),
    )
    ids = select(step.id, func.count().over()).where(gaps).group_by(step.id).order_by(step.id)
    found = connection.execute(ids.limit(1))
    wrong = [
        f"{count} with a gap or a wrong last transition, the first: {id}" for id, count in found
    ]
    return to_finding("history", wrong, f"complete, for {_checked(whole=whole)}")


def _check_history_start(connection: Connection, *, whole: bool) -> Finding:
    """Find rows that an INSERT has written with another status: of a restore, for example."""
    e, h = executions.c, execution_history.c
    ids = (
        select(e.id, func.count().over())
        .join_from(executions, execution_history)
        .where(h.seq == 1, h.to_status != ExecutionStatus.PENDING)
        .order_by(e.id)
        .limit(1)
    )
    if not whole:
        ids = ids.where(_is_live_or_new())
    wrong = [
        f"{count} whose history does not begin with pending, the first: {first}"
        for first, count in connection.execute(ids)
    ]
    return to_finding("history_start", wrong, f"pending, for {_checked(whole=whole)}")


def _is_live_or_new() -> ColumnElement[bool]:
    e = executions.c
    live = select(e.id).where(e.status.in_(LIVE))
    newest = select(select(e.id).order_by(e.id.desc()).limit(NEWEST).subquery().c.id)
    return in_array(e.id, union(live, newest).scalar_subquery())


def _checked(*, whole: bool) -> str:
    return "every execution" if whole else f"the live and the newest {NEWEST:,} executions"
