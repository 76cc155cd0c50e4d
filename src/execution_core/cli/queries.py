"""The queries of the commands that read.

They read only views, so a role needs no rights on the tables. `list --with` reads the table.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Table,
    Text,
    case,
    func,
    literal,
    select,
    union_all,
)

from ..core import state_machine
from ..core.errors import ExecutionNotFound, InvalidValue
from ..core.models import ExecutionStatus
from ..core.selections import PruneRequest
from ..sql.schema.column_types import Id
from ..sql.schema.expressions import database_now, in_array, later, unindexed
from ..sql.schema.tables import executions
from ..sql.schema.views import (
    execution_children,
    execution_overview,
    execution_timeline,
    executions_needing_attention,
)
from ..sql.statements.queries import bound_of_ids
from ..sql.statements.rows import MILLISECOND

Rows = list[dict[str, Any]]

overview: Final = execution_overview.c
_COLUMNS: Final = (overview.execution_id.label("id"), *list(overview)[1:])
PREFIX_LENGTHS: Final = (13, 18, 23, 36)
"""Lengths of id prefixes: up to the milliseconds, then one group of digits more each time."""
MAX_CANDIDATES: Final = 5


def rows(connection: Connection, query: Select[Any]) -> Rows:
    """Return the rows of a query as dicts."""
    return [dict(row) for row in connection.execute(query).mappings()]


def now(connection: Connection) -> datetime:
    """Return the time of the database."""
    found: datetime = connection.execute(select(database_now())).scalar_one()
    return found


def resolve_id(connection: Connection, given: str) -> str:
    """Return the only id that starts with the given prefix, as git does."""
    digits = given.strip().lower().replace("-", "")
    if not 1 <= len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
        raise ExecutionNotFound(given)
    lowest, highest = (str(UUID(digits.ljust(32, filler))) for filler in "0f")
    query = (
        select(overview.execution_id)
        .where(overview.execution_id.between(lowest, highest))
        .order_by(overview.execution_id)
        .limit(MAX_CANDIDATES + 1)
    )
    found = list(connection.execute(query).scalars())
    if not found:
        raise ExecutionNotFound(given)
    if len(found) > 1:
        ids = ", ".join(found[:MAX_CANDIDATES]) + (", …" if len(found) > MAX_CANDIDATES else "")
        raise InvalidValue("id", f"{given!r} is ambiguous: matches {ids}")
    return str(found[0])


def short_ids(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """Return the shortest unique prefix of each id."""
    other = execution_overview.alias().c.execution_id
    this = overview.execution_id
    before = select(other).where(other < this).order_by(other.desc()).limit(1).scalar_subquery()
    after = select(other).where(other > this).order_by(other).limit(1).scalar_subquery()
    query = select(this, before.label("before"), after.label("after")).where(this.in_(ids))
    prefixes = {}
    for id, *neighbours in connection.execute(query):
        prefixes[id] = next(
            id[:length]
            for length in PREFIX_LENGTHS
            if not any(each and each.startswith(id[:length]) for each in neighbours)
        )
    return prefixes


def page(
    *,
    statuses: Sequence[str] = (),
    type: str | None = None,
    parent_id: str | None = None,
    key: str | None = None,
    created: tuple[datetime | None, datetime | None] = (None, None),
    finished_since: datetime | None = None,
    before: str | None = None,
    limit: int,
) -> Select[Any]:
    """Select executions, newest first; None in `created` means no bound."""
    since, until = created
    newest = overview.execution_id.desc()
    where: list[ColumnElement[bool]] = []
    if type is not None:
        where.append(overview.type == type)
    if parent_id is not None:
        where.append(overview.parent_id == parent_id)
    if key is not None:  # at most one
        return select(*_COLUMNS).where(*where, overview.idempotency_key == key)
    if since is not None:
        where += [overview.created_at >= since, overview.execution_id >= bound_of_ids(since, -1)]
    if until is not None:
        where += [overview.created_at <= until, overview.execution_id <= bound_of_ids(until, 1)]
    if before is not None:
        where.append(overview.execution_id < before)
    if finished_since is not None:
        # Use the index of finished executions; in id order SQLite would read the whole table.
        recent = [*where, overview.completed_at >= finished_since]
        if statuses:
            recent.append(unindexed(overview.status, type_=Text()).in_(statuses))
        newest = unindexed(overview.execution_id, type_=Id()).desc()
        return select(*_COLUMNS).where(*recent).order_by(newest).limit(limit)
    if not statuses and type is None and parent_id is None:
        return select(*_COLUMNS).where(*where).order_by(newest).limit(limit)
    # Read one page per status by index, then take the newest of them: see `statements.page`.
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
    return select(*_COLUMNS).where(among).order_by(newest).limit(limit)


def one(id: str) -> Select[Any]:
    """Select one execution."""
    return select(*_COLUMNS).where(overview.execution_id == id)


def add_columns(connection: Connection, found: Rows, names: Sequence[str]) -> None:
    """Add columns of the table that the overview omits to its rows."""
    if not names or not found:
        return
    ids = [row["id"] for row in found]
    chosen = [executions.c["error" if name == "stack" else name].label(name) for name in names]
    query = select(executions.c.id, *chosen).where(executions.c.id.in_(ids))
    added = {row["id"]: row for row in connection.execute(query).mappings()}
    for row in found:
        for name in names:
            value = added[row["id"]][name]
            row[name] = value and value.get("stack") if name == "stack" else value


def children_counts(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the counts of the children of each of these executions that has children."""
    query = select(execution_children).where(execution_children.c.parent_id.in_(ids))
    return {row.pop("parent_id"): row for row in rows(connection, query)}


def add_children(connection: Connection, found: Rows) -> None:
    """Add `children` to the rows: the counts of their children, None without children."""
    counts = children_counts(connection, [row["id"] for row in found])
    for row in found:
        row["children"] = counts.get(row["id"])


def tree(id: str, limit: int) -> Select[Any]:
    """Select an execution and those below it, the upper levels first if there are too many."""
    found = select(overview.execution_id.label("id")).where(overview.execution_id == id)
    below = found.cte("below", recursive=True)
    child, step = execution_overview.alias().c, execution_overview.alias().c
    children = select(child.execution_id).where(child.parent_id == below.c.id).correlate(below)
    # UNION ends the cycles that manual SQL can make. For a plain join PostgreSQL may read the whole
    # table once per level.
    is_child = in_array(step.execution_id, children.scalar_subquery())
    below = below.union(
        select(step.execution_id).join_from(below, step.execution_id.table, is_child)
    )
    ids = select(below.c.id).limit(limit).scalar_subquery()
    return select(*_COLUMNS).where(in_array(overview.execution_id, ids))


def cancellation(id: str) -> Select[Any]:
    """Select the reason and the actor of the last transition."""
    columns = execution_timeline.c
    found = select(columns.reason, columns.actor).where(columns.execution_id == id)
    return found.order_by(columns.seq.desc()).limit(1)


def history(view: Table, id: str, order: str) -> Select[Any]:
    """Select the rows of an execution from the view of its attempts or of its transitions."""
    return select(*view.c).where(view.c.execution_id == id).order_by(view.c[order])


def replays(id: str, limit: int) -> Select[Any]:
    """Select the replays of an execution, newest first."""
    newest = overview.execution_id.desc()
    return select(*_COLUMNS).where(overview.replay_of == id).order_by(newest).limit(limit)


def counts() -> Select[Any]:
    """Count all executions by type and status, from an index only."""
    return (
        select(overview.type, overview.status, func.count().label("count"))
        .group_by(overview.type, overview.status)
        .order_by(overview.type, overview.status)
    )


def live_counts() -> Select[Any]:
    """Count the live executions by status."""
    return (
        select(overview.status, func.count().label("count"))
        .where(overview.status.in_(state_machine.LIVE))
        .group_by(overview.status)
    )


def last_finished(last: int) -> Select[Any]:
    """Select the executions that finished last."""
    return (
        select(overview.type, overview.status, overview.completed_at, overview.duration_seconds)
        .where(overview.completed_at.is_not(None))
        .order_by(overview.completed_at.desc())
        .limit(last)
    )


def attention(*, statuses: Sequence[str] = (), type: str | None = None, limit: int) -> Select[Any]:
    """Select what needs attention, the latest first."""
    columns = executions_needing_attention.c
    where: list[ColumnElement[bool]] = []
    if statuses:
        where.append(columns.status.in_(statuses))
    if type is not None:
        where.append(columns.type == type)
    chosen = (columns.execution_id.label("id"), *list(columns)[1:])
    return select(*chosen).where(*where).order_by(columns.since_at.desc()).limit(limit)


def count_prunable(connection: Connection, request: PruneRequest) -> int:
    """Count what a prune would delete now."""
    now = database_now()

    def is_older(age: timedelta) -> ColumnElement[bool]:
        return overview.completed_at <= later(now, literal(-(age // MILLISECOND), BigInteger))

    in_use = (
        select(overview.parent_id.label("id"))
        .where(overview.status.in_(state_machine.LIVE), overview.parent_id.is_not(None))
        .cte("in_use", recursive=True)
    )
    above = execution_overview.alias().c
    in_use = in_use.union(
        select(above.parent_id)
        .join(in_use, above.execution_id == in_use.c.id)
        .where(above.parent_id.is_not(None))
    )
    where = [
        is_older(min(request.older_than, request.keys_older_than)),
        case(
            (overview.idempotency_key.is_(None), is_older(request.older_than)),
            else_=is_older(request.keys_older_than),
        ),
        unindexed(overview.status, type_=Text()).in_(request.statuses),
        overview.execution_id.not_in(select(in_use.c.id)),
    ]
    if request.type is not None:
        where.append(unindexed(overview.type, type_=Text()) == request.type)
    return connection.execute(select(func.count()).where(*where)).scalar_one()
