"""What a write leaves in the database, looked for when its answer was lost: for `outcome`."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    Double,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    column,
    false,
    func,
    literal_column,
    select,
    table,
)

from ...core.state_machine import FINISHED
from ..schema.expressions import database_now
from ..schema.tables import execution_history, execution_logs, executions
from ..statements.queries import Query
from ..statements.rows import FIELDS, LOG_ROW, ROW

TERMINATE_TIMEOUT_MS: Final = 5000
"""How long a server process may take to end."""

# What the history knows of a row as a move left it.
_HISTORY_COLUMNS = {
    "status": "to_status",
    "attempts": "attempt",
    "updated_at": "occurred_at",
    "worker": "worker",
    "error": "error",
}


def find_write(id: str, token: str) -> Query:
    """An execution, and the trace of a write to it: for `as_written`."""
    return Query(_find_write(), {"id": id, "token": token}, "get", id)


def row_after_write(row: Sequence[Any], token: str) -> tuple[Sequence[Any], bool, datetime]:
    """Return the row of an execution, whether a trace of the write is there, and the time.

    When others have moved it on since, the row is as the write left it, so far as that is known.
    """
    now, at, last, *then = [*row[: len(ROW)]], *row[len(ROW) :]
    if then[0] is None:
        return now, last == token, at
    fields = dict(zip(FIELDS, now, strict=False))
    left = dict(zip(_HISTORY_COLUMNS, then, strict=True))
    if [fields["status"], fields["attempts"]] != [left["status"], left["attempts"]]:
        left["completed_at"] = left["updated_at"] if left["status"] in FINISHED else None
        now[: len(FIELDS)] = (fields | left).values()
    return now, True, at


def status_column(row: Sequence[Any]) -> Sequence[Any]:
    """Return what is answered of a row that need not be whole."""
    return [row[FIELDS.index("status")]]


def find_batch_write(token: str) -> Query:
    """The executions that one write has moved: for `as_left`."""
    return Query(_find_batch_write(), {"token": token}, "get")


def row_if_unchanged(row: Sequence[Any]) -> Sequence[Any] | None:
    """Return the row of an execution if it is where the write left it; None: others were there."""
    now, left = row[: len(ROW)], [*row[len(ROW) :]]
    return now if left == [now[FIELDS.index(field)] for field in ("status", "attempts")] else None


def find_log_entry(id: str, line: str) -> Query:
    """The line of a log that has this id."""
    return Query(_find_log_entry(), {"id": id, "line": line}, "get", id)


def terminate_backend(number: int, age: timedelta) -> Query:
    """One SELECT that ends a server process of our own which nobody talks to any more.

    It returns the number of the process that answers it, and whether the other one has ended: None
    when there is no such process. One that is younger only happens to have got the number, unless
    the server's clock was set back: it is left alone, and said not to have ended.
    """
    return Query(_terminate_backend(), {"number": number, "age": age.total_seconds()}, "get")


@cache
def _find_write() -> Select[Any]:
    history = execution_history.c
    id = bindparam("id", type_=executions.c.id.type)
    token = bindparam("token", type_=history.write_token.type)
    move = and_(history.execution_id == executions.c.id, history.write_token == token)
    then = (history[name] for name in _HISTORY_COLUMNS.values())
    return (
        select(*ROW, database_now(), executions.c.write_token, *then)
        .select_from(executions.outerjoin(execution_history, move))
        .where(executions.c.id == id)
    )


@cache
def _find_batch_write() -> Select[Any]:
    history = execution_history.c
    token = bindparam("token", type_=history.write_token.type)
    move = and_(history.execution_id == executions.c.id, history.write_token == token)
    return select(*ROW, history.to_status, history.attempt).select_from(
        executions.join(execution_history, move)
    )


@cache
def _find_log_entry() -> Select[Any]:
    logged = execution_logs.c
    id, line = (bindparam(name, type_=logged.id.type) for name in ("id", "line"))
    return select(*LOG_ROW).where(logged.execution_id == id, logged.id == line)


@cache
def _terminate_backend() -> Select[Any]:
    names = ("pid", "usesysid", "datid", "backend_start")
    activity = table("pg_stat_activity", *(column(name) for name in names))
    own, other = activity.alias("own"), activity.alias("other")
    same = [own.c[name] == other.c[name] for name in ("usesysid", "datid")]
    # Not the asking one itself, which has got the number of one that is gone.
    number = and_(other.c.pid == bindparam("number", type_=Integer), other.c.pid != own.c.pid)
    age = func.make_interval(0, 0, 0, 0, 0, 0, bindparam("age", type_=Double))
    ended = case(
        (other.c.pid.is_(None), None),
        (
            other.c.backend_start <= func.clock_timestamp() - age,
            func.pg_terminate_backend(
                other.c.pid, literal_column(str(TERMINATE_TIMEOUT_MS), Integer)
            ),
        ),
        else_=false(),
    )
    return (
        select(own.c.pid, ended)
        .select_from(own.outerjoin(other, and_(number, *same)))
        .where(own.c.pid == func.pg_backend_pid())
    )
