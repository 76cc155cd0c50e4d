"""SQLAlchemy statements that read, each built once for its conditions; values are parameters."""

from collections.abc import Callable, Sequence
from functools import cache
from operator import eq, ge, gt, lt
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    false,
    func,
    or_,
    select,
    union_all,
)

from ...core.models import ExecutionStatus
from ...core.state_machine import LIVE
from ..schema.expressions import in_ids, unindexed
from ..schema.tables import execution_history, execution_logs, executions
from ..schema.views import execution_attempts
from .rows import ATTEMPT_ROW, HISTORY_ROW, LOG_ROW, ROW
from .transition_sql import any_child, id_parameter, status_literal

columns = executions.c
_COMPARED: Final[dict[str, tuple[Column[Any], Callable[..., Any]]]] = {
    "parent_id": (columns.parent_id, eq),
    "replay_of": (columns.replay_of, eq),
    "worker": (columns.worker, eq),
    "before": (columns.id, lt),
    "after": (columns.id, gt),
    "created_since": (columns.created_at, ge),
    "created_until": (columns.created_at, lt),
    "finished_since": (columns.completed_at, ge),
    "finished_until": (columns.completed_at, lt),
}
"""For each condition of a page besides status and type: the column, and how it compares."""
_OF_OWN_INDEX: Final = frozenset(("replay_of", "finished_since", "finished_until"))
"""Conditions for their own index: in the order of ids, SQLite would read the whole table."""


@cache
def select_statement(column: Column[Any]) -> Select[Any]:
    """Return the SELECT of the execution with a value in a column."""
    return select(*ROW).where(column == bindparam("value", type_=column.type))


@cache
def unfinished_statement(*, children: bool) -> Select[Any]:
    """Return the SELECT of those of some ids that are live, or that have a live child."""
    if children:
        is_live = any_child(min(LIVE), max(LIVE)).is_not(None)
    else:
        is_live = columns.status.in_([status_literal(status) for status in LIVE])
    return select(columns.id).where(in_ids(columns.id, bindparam("ids", type_=Text), is_live))


@cache
def page_statement(
    statuses: tuple[ExecutionStatus, ...] | None,
    types: int | None,
    conditions: frozenset[str],
    *,
    oldest_first: bool,
) -> Select[Any]:
    """Return the SELECT of a page; `types` is the number of types, `conditions` are the others."""
    limit = bindparam("limit", type_=Integer)
    order = columns.id.asc() if oldest_first else columns.id.desc()

    def found(*chosen: Any, where: Sequence[ColumnElement[bool]]) -> Select[Any]:
        return select(*chosen).where(*where).order_by(order).limit(limit)

    if statuses == () or types == 0:
        return found(*ROW, where=[false()])
    where = [_condition(name) for name in sorted(conditions)]
    if conditions & _OF_OWN_INDEX:
        by_id = unindexed(columns.id, type_=columns.id.type)
        chosen = _selected(statuses, types, indexed=False)
        ordered = by_id.asc() if oldest_first else by_id.desc()
        return select(*ROW).where(*where, *chosen).order_by(ordered).limit(limit)
    if statuses is None:
        if types is None and "parent_id" not in conditions:
            return found(*ROW, where=where)
        statuses = tuple(ExecutionStatus)
    of_types: list[list[ColumnElement[bool]]] = [[]]
    if types is not None:
        of_types = [[columns.type == _type_parameter(n)] for n in range(types)]
    equal = [
        [columns.status == status_literal(status), *of_type]
        for status in statuses
        for of_type in of_types
    ]
    if len(equal) == 1:
        return found(*ROW, where=[*equal[0], *where])
    # One page of each status and type by its index, then the first of those. One query for all of
    # them would sort every finished execution.
    pages = [found(columns.id, where=[*each, *where]).subquery() for each in equal]
    ids = union_all(*(select(page.c.id) for page in pages)).subquery()
    return found(*ROW, where=[columns.id.in_(select(ids.c.id))])


@cache
def count_statement(
    statuses: tuple[ExecutionStatus, ...] | None, types: int | None, conditions: frozenset[str]
) -> Select[Any]:
    """Return the SELECT of the number of executions; the arguments are those of a page."""
    where = [_condition(name) for name in sorted(conditions)]
    chosen = _selected(statuses, types, indexed=not conditions & _OF_OWN_INDEX)
    return select(func.count()).select_from(executions).where(*where, *chosen)


@cache
def children_statement() -> Select[Any]:
    """Return the SELECT of the number of children of an execution by status."""
    parent = bindparam("parent_id", type_=columns.parent_id.type)
    found = select(columns.status, func.count()).where(columns.parent_id == parent)
    return found.group_by(columns.status)


def _selected(
    statuses: tuple[ExecutionStatus, ...] | None, types: int | None, *, indexed: bool
) -> list[ColumnElement[bool]]:
    """Return the conditions on the status and the type; SQLite may use their index if `indexed`."""
    status, type = (
        each if indexed else unindexed(each, type_=Text())
        for each in (columns.status, columns.type)
    )
    where: list[ColumnElement[bool]] = []
    if statuses is not None:
        allowed = [status_literal(each) for each in statuses]
        where.append(status.in_(allowed) if allowed else false())
    if types is not None:
        where.append(or_(false(), *(type == _type_parameter(n) for n in range(types))))
    return where


def _type_parameter(number: int) -> ColumnElement[Any]:
    return bindparam(f"type_{number}", type_=Text)


def _condition(name: str) -> ColumnElement[bool]:
    """Return one condition of a page."""
    column, compare = _COMPARED[name]
    condition: ColumnElement[bool] = compare(column, bindparam(name, type_=column.type))
    if column is not columns.created_at:
        return condition
    bound = bindparam(f"{name}_id", type_=columns.id.type)  # of the primary key's index
    return and_(condition, columns.id >= bound if compare is ge else columns.id <= bound)


@cache
def logs_statement(bounds: frozenset[str], *, oldest_first: bool) -> Select[Any]:
    """Return the SELECT of a page of an execution's log."""
    logged = execution_logs.c
    where = [logged.execution_id == id_parameter()]
    if "before" in bounds:
        where.append(logged.id < bindparam("before", type_=logged.id.type))
    if "after" in bounds:
        where.append(logged.id > bindparam("after", type_=logged.id.type))
    order = logged.id.asc() if oldest_first else logged.id.desc()
    limit = bindparam("limit", type_=Integer)
    return select(*LOG_ROW).where(*where).order_by(order).limit(limit)


@cache
def history_statement() -> Select[Any]:
    """Return the SELECT of an execution's history."""
    recorded = execution_history.c
    of_one = select(*HISTORY_ROW).where(recorded.execution_id == id_parameter())
    return of_one.order_by(recorded.seq)


@cache
def attempts_statement() -> Select[Any]:
    """Return the SELECT of an execution's attempts."""
    made = execution_attempts.c
    of_one = select(*ATTEMPT_ROW).where(made.execution_id == id_parameter())
    return of_one.order_by(made.attempt)
