"""SQLAlchemy statements, each built once for a rule and its variants; values are parameters."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    delete,
    false,
    insert,
    not_,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate

from ...core.models import ExecutionStatus
from ...core.state_machine import Condition, Rule
from ..schema.expressions import database_now, has_live_links, in_array, later, unindexed
from ..schema.tables import execution_logs, executions
from .rows import LOG_ROW, ROW
from .transition_sql import (
    assignments,
    clock_parameter,
    duration_parameter,
    guard_sql,
    id_parameter,
    status_literal,
    time_expressions,
    value_parameter,
    where_clause,
)

columns = executions.c


@cache
def insert_statement(linked: tuple[str, ...], *, clocked: bool) -> ReturningInsert[Any]:
    """Return the INSERT of a new execution, with links to its parent and its original."""
    # Imported here because it is slow to import. SQLite compiles its ON CONFLICT as well.
    from sqlalchemy.dialects.postgresql import insert as upsert  # noqa: PLC0415

    given = (
        *(columns.id, columns.type, columns.payload, columns.max_attempts, columns.timeout_ms),
        *(columns.idempotency_key, columns.fingerprint, columns.metadata),
    )
    new: dict[Column[Any], ColumnElement[Any]] = {
        column: value_parameter(column) for column in given
    }
    now = clock_parameter() if clocked else database_now()
    new |= {columns.created_at: now, columns.updated_at: now}
    new[columns.due_at] = later(now, duration_parameter("start_after"))
    statement = upsert(executions)
    links = [columns[name] for name in linked]
    if links:
        # The INSERT itself looks up and locks the linked rows: a failed foreign key would abort
        # the caller's whole transaction.
        tables = [executions.alias(link.name) for link in links]
        named = [table.c.id for table in tables]
        new |= dict(zip(links, named, strict=True))
        both: FromClause = tables[0]
        for other in tables[1:]:
            both = both.join(other, true())  # without a condition, SQLAlchemy warns
        found = (
            select(*new.values())
            .select_from(both)
            .where(*(id == value_parameter(link) for link, id in zip(links, named, strict=True)))
        )
        statement = statement.from_select(
            list(new), found.with_for_update(read=True, key_share=True), include_defaults=False
        )
    else:
        statement = statement.values(new)
    return statement.on_conflict_do_nothing(index_elements=[columns.idempotency_key]).returning(
        *ROW
    )


@cache
def update_statement(
    rule: Rule, *, for_attempt: bool, clocked: bool, whole: bool
) -> ReturningUpdate[Any]:
    """Return the conditional UPDATE of a rule."""
    now, not_before = time_expressions(clocked=clocked)
    guard = where_clause(rule, now, for_attempt=for_attempt)
    changes = assignments(rule.moves, now, not_before)
    answer = ROW if whole else [columns.status]
    return update(executions).where(*guard).values(changes).returning(*answer)


@cache
def update_many_statement(rule: Rule, *, typed: bool, clocked: bool) -> ReturningUpdate[Any]:
    """Return the conditional UPDATE of a rule for up to `limit` executions."""
    now, not_before = time_expressions(clocked=clocked)
    guard = [or_(*(guard_sql(move, now) for move in rule.moves))]
    if typed:
        guard.append(columns.type == bindparam("old_type", type_=Text))
    # Rows locked by other transactions are skipped, and rows that they have changed are checked
    # again. The lock leaves the key free, so that children can be created. The outer statement has
    # no condition but the ids: with another one, PostgreSQL might read everything that is due.
    waiting = any(move.when is Condition.DUE for move in rule.moves)
    chosen = (
        select(columns.id)
        .where(*guard)
        .order_by(*((columns.due_at, columns.id) if waiting else ()))
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(key_share=True, skip_locked=True)
        .correlate(None)
        .scalar_subquery()
    )
    return (
        update(executions)
        .where(in_array(columns.id, chosen))
        .values(assignments(rule.moves, now, not_before))
        .returning(*ROW)
    )


@cache
def select_statement(column: Column[Any]) -> Select[Any]:
    """Return the SELECT of the execution with a value in a column."""
    return select(*ROW).where(column == bindparam("value", type_=column.type))


@cache
def page_statement(
    statuses: tuple[ExecutionStatus, ...] | None, conditions: frozenset[str]
) -> Select[Any]:
    """Return the SELECT of a page, newest id first."""
    limit = bindparam("limit", type_=Integer)
    newest = columns.id.desc()

    def found(*chosen: Any, where: Sequence[ColumnElement[bool]]) -> Select[Any]:
        return select(*chosen).where(*where).order_by(newest).limit(limit)

    where = [
        columns.id < bindparam("before", type_=columns.id.type)
        if name == "before"
        else columns[name] == bindparam(name, type_=columns[name].type)
        for name in sorted(conditions)
    ]
    if statuses is None:
        if conditions <= {"before"}:
            return found(*ROW, where=where)
        statuses = tuple(ExecutionStatus)
    if not statuses:
        return found(*ROW, where=[false()])
    if len(statuses) == 1:
        return found(*ROW, where=[columns.status == status_literal(statuses[0]), *where])
    # One page of each status by its index, then the newest of those. One query for all of them
    # would sort every finished execution.
    pages = [
        found(columns.id, where=[columns.status == status_literal(status), *where]).subquery()
        for status in statuses
    ]
    ids = union_all(*(select(page.c.id) for page in pages)).subquery()
    return found(*ROW, where=[columns.id.in_(select(ids.c.id))])


@cache
def prune_statement(
    statuses: tuple[ExecutionStatus, ...], *, typed: bool, clocked: bool
) -> ReturningDelete[Any]:
    """Return the DELETE of finished executions that are old enough and not in use."""
    now, _ = time_expressions(clocked=clocked)
    plain, keyed, either = (
        columns.completed_at <= later(now, -duration_parameter(age))
        for age in ("older_than", "keys_older_than", "least")
    )
    guard = [
        either,  # by the index on completed_at
        unindexed(columns.status, type_=Text()).in_([status_literal(status) for status in statuses])
        if statuses
        else false(),
        case((columns.idempotency_key.is_(None), plain), else_=keyed),
        not_(has_live_links(columns.id)),
    ]
    if typed:
        guard.append(columns.type == bindparam("old_type", type_=Text))
    chosen = (
        select(columns.id)
        .where(*guard)
        .order_by(columns.completed_at)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True)
        .correlate(None)
        .scalar_subquery()
    )
    # Again now that the row is locked: to create a child locks its parent.
    return (
        delete(executions)
        .where(in_array(columns.id, chosen), not_(has_live_links(columns.id)))
        .returning(columns.id)
    )


@cache
def log_statement(rule: Rule, *, for_attempt: bool, clocked: bool) -> ReturningInsert[Any]:
    """Return the INSERT of a log entry, guarded by a rule."""
    now, not_before = time_expressions(clocked=clocked)
    new: dict[Column[Any], ColumnElement[Any]] = {
        execution_logs.c.execution_id: columns.id,
        execution_logs.c.attempt: columns.attempts,
        execution_logs.c.logged_at: not_before,
    }
    for name in ("id", "level", "message", "data"):
        column = execution_logs.c[name]
        new[column] = bindparam(f"log_{name}", type_=column.type)
    # The lock prevents a concurrent delete: a failed foreign key would abort the caller's whole
    # transaction.
    guard = where_clause(rule, now, for_attempt=for_attempt)
    found = select(*new.values()).where(*guard).with_for_update(read=True, key_share=True)
    return (
        insert(execution_logs)
        .from_select(list(new), found, include_defaults=False)
        .returning(*LOG_ROW)
    )


@cache
def logs_statement(*, from_the_end: bool) -> Select[Any]:
    """Return the SELECT of an execution's log, newest first."""
    logged = execution_logs.c
    where = [logged.execution_id == id_parameter()]
    if not from_the_end:
        where.append(logged.id < bindparam("before", type_=logged.id.type))
    limit = bindparam("limit", type_=Integer)
    return select(*LOG_ROW).where(*where).order_by(logged.id.desc()).limit(limit)


@cache
def delete_statement() -> ReturningDelete[Any]:
    """Return the DELETE of an execution."""
    return delete(executions).where(columns.id == id_parameter()).returning(columns.id)
