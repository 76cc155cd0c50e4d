"""Whether executions get on, and their history is whole."""

from datetime import datetime
from functools import partial
from typing import Any, Final, cast

from sqlalchemy import (
    BigInteger,
    BinaryExpression,
    ColumnElement,
    Connection,
    and_,
    func,
    literal,
    or_,
    select,
    union,
)

from ..core.state_machine import CLAIM, LIVE, SWEEP, Move
from ..sql.schema.expressions import database_now, in_array, later
from ..sql.schema.tables import execution_history, executions
from ..sql.statements.transition_sql import condition_sql, guard_sql
from .finding import Checks, Finding, format_time, to_finding

NEWEST: Final = 1_000
"""Of so many executions the history is read, besides those that are live."""


def checks_of_executions(connection: Connection, patience: int, *, whole: bool) -> Checks:
    """Look at executions, and at their history."""
    (overdue, stalled), (due,) = SWEEP.moves, CLAIM.moves
    now = database_now()
    before = later(now, literal(-patience, BigInteger))
    late = partial(_late, connection, patience)
    return {
        "overdue": lambda: late("overdue", overdue, now),
        "stalled": lambda: late("stalled", stalled, now),
        "unclaimed": lambda: late("unclaimed", due, before),
        "history": lambda: _history(connection, whole=whole),
    }


def _late(
    connection: Connection, patience: int, check: str, move: Move, now: ColumnElement[datetime]
) -> Finding:
    """Find what a sweep or a claim would find: by its condition, whose left side is since when."""
    (condition,) = condition_sql(move.when, now)
    since = cast("BinaryExpression[datetime]", condition).left
    columns = executions.c
    query = (
        select(columns.id, columns.type, columns.worker, since, func.count().over())
        .where(guard_sql(move, now))
        .order_by(since)
        .limit(1)
    )
    wrong = [
        f"{count}, the first since {format_time(began)}:"
        f" {id} ({type}{f', {worker}' if worker else ''})"
        for id, type, worker, began, count in connection.execute(
            query, {"stalled_after_ms": patience}
        )
    ]
    return to_finding(check, wrong, "none")


def _history(connection: Connection, *, whole: bool) -> Finding:
    e, h = executions.c, execution_history.c
    in_order: Any = {"partition_by": e.id, "order_by": h.seq}
    moves = select(
        *(e.id, e.status, e.attempts, h.seq, h.from_status, h.to_status, h.attempt),
        func.row_number().over(**in_order).label("place"),
        func.lag(h.to_status).over(**in_order).label("before"),
        func.lead(h.seq).over(**in_order).label("next"),
    ).join_from(executions, execution_history, isouter=True)
    if not whole:
        live = select(e.id).where(e.status.in_(LIVE))
        newest = select(select(e.id).order_by(e.id.desc()).limit(NEWEST).subquery().c.id)
        moves = moves.where(in_array(e.id, union(live, newest).scalar_subquery()))
    move = moves.subquery().c
    ends_elsewhere = or_(move.to_status != move.status, move.attempt != move.attempts)
    gaps = or_(
        move.seq.is_(None),
        move.seq != move.place,
        func.coalesce(move.from_status, "") != func.coalesce(move.before, ""),
        and_(move.next.is_(None), ends_elsewhere),
    )
    ids = select(move.id, func.count().over()).where(gaps).group_by(move.id).order_by(move.id)
    found = connection.execute(ids.limit(1))
    wrong = [
        f"{count} with a gap, or not as they moved last, the first: {id}" for id, count in found
    ]
    seen = "every execution" if whole else f"the live and the newest {NEWEST:,} executions"
    return to_finding("history", wrong, f"without a gap, of {seen}")
