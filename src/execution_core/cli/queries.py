"""What the reading commands ask the database: views alone, but for `show`.

A role that may read the views and nothing else can use all of them.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, Text, func, select, union_all

from ..core import state_machine
from ..core.errors import ExecutionNotFound, InvalidValue
from ..core.models import ExecutionStatus
from ..sql.schema.column_types import Id
from ..sql.schema.expressions import database_now, unindexed
from ..sql.schema.tables import executions
from ..sql.schema.views import execution_attempts, execution_overview, execution_timeline

Rows = list[dict[str, Any]]

overview: Final = execution_overview.c
CUTS: Final = (13, 18, 23, 36)
"""Where an id may be cut: behind its milliseconds, and behind each further group."""
MAX_CANDIDATES: Final = 5


def rows(connection: Connection, query: Select[Any]) -> Rows:
    """Return the rows of a query as dicts."""
    return [dict(row) for row in connection.execute(query).mappings()]


def with_id(found: Rows) -> Rows:
    """Return rows of the overview with `id` as the name of their first column."""
    return [{"id" if name == "execution_id" else name: row[name] for name in row} for row in found]


def now(connection: Connection) -> datetime:
    """Return the database's time."""
    found: datetime = connection.execute(select(database_now())).scalar_one()
    return found


def resolve_id(connection: Connection, given: str) -> str:
    """Return the id of which a prefix was given, as in git.

    Raises:
        ExecutionNotFound: there is none.
        InvalidValue: there are several.
    """
    digits = given.strip().lower().replace("-", "")
    if not 1 <= len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
        raise ExecutionNotFound(given)
    least, most = (_dashed(digits.ljust(32, filler)) for filler in "0f")
    query = (
        select(overview.execution_id)
        .where(overview.execution_id.between(least, most))
        .order_by(overview.execution_id)
        .limit(MAX_CANDIDATES + 1)
    )
    found = list(connection.execute(query).scalars())
    if not found:
        raise ExecutionNotFound(given)
    if len(found) > 1:
        those = ", ".join(found[:MAX_CANDIDATES]) + (", …" if len(found) > MAX_CANDIDATES else "")
        raise InvalidValue("id", f"{given!r} is the beginning of several: {those}")
    return str(found[0])


def short_ids(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """Return the shortest beginning of each id that no other execution has."""
    other = execution_overview.alias().c.execution_id
    this = overview.execution_id
    before = select(other).where(other < this).order_by(other.desc()).limit(1).scalar_subquery()
    after = select(other).where(other > this).order_by(other).limit(1).scalar_subquery()
    query = select(this, before.label("before"), after.label("after")).where(this.in_(ids))
    cuts = {}
    for id, *neighbours in connection.execute(query):
        others = [str(each) for each in neighbours if each is not None]
        end = next(n for n in CUTS if not any(each[:n] == id[:n] for each in others) or n == 36)
        cuts[id] = id[:end]
    return cuts


def page(
    *,
    statuses: Sequence[str] = (),
    type: str | None = None,
    parent_id: str | None = None,
    created: tuple[datetime | None, datetime | None] = (None, None),
    finished_since: datetime | None = None,
    before: str | None = None,
    limit: int,
) -> Select[Any]:
    """Executions, newest first; of the times between which they were created, None is no bound."""
    since, until = created
    newest = overview.execution_id.desc()
    where: list[ColumnElement[bool]] = []
    if type is not None:
        where.append(overview.type == type)
    if parent_id is not None:
        where.append(overview.parent_id == parent_id)
    if since is not None:
        where += [overview.created_at >= since, overview.execution_id >= _id_about(since, -1)]
    if until is not None:
        where += [overview.created_at <= until, overview.execution_id <= _id_about(until, 1)]
    if before is not None:
        where.append(overview.execution_id < before)
    if finished_since is not None:
        # By the index of what is over: in the order of ids SQLite would read all there is.
        recent = [*where, overview.completed_at >= finished_since]
        if statuses:
            recent.append(unindexed(overview.status, type_=Text()).in_(statuses))
        newest = unindexed(overview.execution_id, type_=Id()).desc()
        return select(*overview).where(*recent).order_by(newest).limit(limit)
    if not statuses and type is None and parent_id is None:
        return select(*overview).where(*where).order_by(newest).limit(limit)
    # A page of each status by its index, and of those the newest: see `statements.page`.
    pages = [
        select(overview.execution_id)
        .where(overview.status == status, *where)
        .order_by(newest)
        .limit(limit)
        .subquery()
        for status in statuses or ExecutionStatus
    ]
    ids = union_all(*(select(each.c.execution_id) for each in pages)).subquery()
    among = overview.execution_id.in_(select(ids.c.execution_id))
    return select(*overview).where(among).order_by(newest).limit(limit)


def one(id: str) -> Select[Any]:
    """One execution."""
    return select(*overview).where(overview.execution_id == id)


def add_hidden(connection: Connection, found: Rows, names: Sequence[str]) -> None:
    """Add to rows of the overview what it leaves out, from the table itself."""
    if not names or not found:
        return
    ids = [row["execution_id"] for row in found]
    chosen = [executions.c["error" if name == "stack" else name].label(name) for name in names]
    query = select(executions.c.id, *chosen).where(executions.c.id.in_(ids))
    hidden = {row["id"]: row for row in connection.execute(query).mappings()}
    for row in found:
        for name in names:
            value = hidden[row["execution_id"]][name]
            row[name] = value and value.get("stack") if name == "stack" else value


def attempts(id: str) -> Select[Any]:
    """The attempts of an execution."""
    of = execution_attempts.c
    return select(*of).where(of.execution_id == id).order_by(of.attempt)


def timeline(id: str) -> Select[Any]:
    """The moves of an execution."""
    of = execution_timeline.c
    return select(*of).where(of.execution_id == id).order_by(of.seq)


def replays(id: str, limit: int) -> Select[Any]:
    """The executions that do an execution again, newest first."""
    newest = overview.execution_id.desc()
    return select(*overview).where(overview.replay_of == id).order_by(newest).limit(limit)


def counts() -> Select[Any]:
    """How many there are, by type and status: from an index alone, but of all executions."""
    return (
        select(overview.type, overview.status, func.count().label("count"))
        .group_by(overview.type, overview.status)
        .order_by(overview.type, overview.status)
    )


def live_counts() -> Select[Any]:
    """How many are not over, by status."""
    return (
        select(overview.status, func.count().label("count"))
        .where(overview.status.in_(state_machine.LIVE))
        .group_by(overview.status)
    )


def last_finished(last: int) -> Select[Any]:
    """What came to rest last."""
    return (
        select(overview.type, overview.status, overview.completed_at, overview.duration_seconds)
        .where(overview.completed_at.is_not(None))
        .order_by(overview.completed_at.desc())
        .limit(last)
    )


def _dashed(digits: str) -> str:
    ends = (0, 8, 12, 16, 20, 32)
    return "-".join(digits[a:b] for a, b in pairwise(ends))


def _id_about(moment: datetime, days: int) -> str:
    """Return an id that bounds those of a time, with room for clocks that disagree by a day."""
    milliseconds = int((moment + timedelta(days=days)).timestamp() * 1000)
    return _dashed(f"{max(0, milliseconds):012x}".ljust(32, "0" if days < 0 else "f"))
