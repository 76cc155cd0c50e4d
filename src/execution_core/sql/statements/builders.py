"""SQLAlchemy statements that write, each built once for a rule and its variants.

Values are parameters.
"""

from functools import cache
from typing import Any

from sqlalchemy import (
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
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate

from ...core.models import ExecutionStatus
from ...core.state_machine import HEARTBEAT, LIVE, Condition, Rule
from ..schema.expressions import (
    database_now,
    has_live_links,
    in_array,
    in_pairs,
    later,
    unindexed,
)
from ..schema.tables import execution_logs, executions
from .rows import LOG_ROW, ROW
from .transition_sql import (
    Assignments,
    assignments,
    clock_parameter,
    duration_parameter,
    id_parameter,
    rule_sql,
    status_literal,
    time_expressions,
    value_parameter,
    where_clause,
)

columns = executions.c
LIVE_SQL = [status_literal(status) for status in LIVE]


def new_values(*, clocked: bool) -> Assignments:
    """Return the values of a new execution, without its links."""
    given = (
        *("id", "type", "payload", "max_attempts", "timeout_ms", "idempotency_key", "fingerprint"),
        *("metadata", "checkpoints", "actor"),
    )
    new: Assignments = {columns[name]: value_parameter(columns[name]) for name in given}
    now = clock_parameter() if clocked else database_now()
    new |= {columns.created_at: now, columns.updated_at: now}
    new[columns.due_at] = later(now, duration_parameter("start_after"))
    return new


@cache
def insert_statement(
    linked: tuple[str, ...], *, live_parent: bool, clocked: bool
) -> ReturningInsert[Any]:
    """Return the INSERT of a new execution, with links to its parent and its original.

    With `live_parent`, nothing is inserted if the parent has finished.
    """
    # Imported here because it is slow to import. SQLite compiles its ON CONFLICT as well.
    from sqlalchemy.dialects.postgresql import insert as upsert  # noqa: PLC0415

    new = new_values(clocked=clocked)
    statement = upsert(executions)
    if linked:
        # The INSERT itself looks up and locks the linked rows: a failed foreign key would abort
        # the caller's whole transaction.
        tables = [executions.alias(name) for name in linked]
        new |= {columns[table.name]: table.c.id for table in tables}
        both: FromClause = tables[0]
        for other in tables[1:]:
            both = both.join(other, true())  # without a condition, SQLAlchemy warns
        found = (
            select(*new.values())
            .select_from(both)
            .where(*(table.c.id == value_parameter(columns[table.name]) for table in tables))
            .with_for_update(read=True, key_share=True)
        )
        if live_parent:
            found = found.where(tables[linked.index("parent_id")].c.status.in_(LIVE_SQL))
        statement = statement.from_select(list(new), found, include_defaults=False)
    else:
        statement = statement.values(new)
    statement = statement.on_conflict_do_nothing(index_elements=[columns.idempotency_key])
    return statement.returning(*ROW)


@cache
def update_statement(
    rule: Rule, *, for_attempt: bool, clocked: bool, whole: bool, skip_locked: bool = False
) -> ReturningUpdate[Any]:
    """Return the conditional UPDATE of a rule."""
    now, not_before = time_expressions(clocked=clocked)
    guard = where_clause(rule, now, for_attempt=for_attempt)
    if skip_locked:
        unlocked = select(columns.id).where(columns.id == id_parameter()).correlate(None)
        unlocked = unlocked.with_for_update(key_share=True, skip_locked=True)
        guard.append(columns.id == unlocked.scalar_subquery())
    changes = assignments(rule.moves, now, not_before)
    answer = ROW if whole else [columns.status]
    return update(executions).where(*guard).values(changes).returning(*answer)


@cache
def heartbeat_many_statement(*, clocked: bool, locks_rows: bool) -> Any:
    """Return the UPDATE that sends heartbeats of attempts; its rows are those that are running."""
    now, not_before = time_expressions(clocked=clocked)
    rule = HEARTBEAT.for_attempt
    attempts = bindparam("old_attempts", type_=Text)
    attempt = columns.id, columns.attempts
    running = in_pairs(*attempt, attempts, rule_sql(rule, now))
    unlocked = select(columns.id).where(running).correlate(None)
    unlocked = unlocked.with_for_update(key_share=True, skip_locked=True)
    sent = (
        update(executions)
        .where(in_array(columns.id, unlocked.scalar_subquery()))
        .values(assignments(rule.moves, now, not_before))
        .returning(*attempt)
    )
    # A locked row is skipped, but its attempt runs: a sweep skips it as well.
    return select(*attempt).where(running).add_cte(sent.cte("sent")) if locks_rows else sent


@cache
def update_many_statement(
    rule: Rule, *, typed: bool, tree: bool, clocked: bool
) -> ReturningUpdate[Any]:
    """Return the conditional UPDATE of a rule for up to `limit` executions.

    With `tree`, for those of the tree below one execution, that one included. Their locks are
    waited for, in the order of the ids, so that two such calls do not wait for each other.
    """
    now, not_before = time_expressions(clocked=clocked)
    # Rows locked by other transactions are skipped, and rows that they have changed are checked
    # again. The lock leaves the key free, so that children can be created. The outer statement has
    # no condition but the ids: with another one, PostgreSQL might read everything that is due.
    waiting = any(Condition.DUE in move.when for move in rule.moves)
    found = select(columns.id).where(rule_sql(rule, now))
    found = found.order_by(*((columns.due_at, columns.id) if waiting else ()))
    if tree:
        found = found.where(in_array(columns.id, _tree_ids())).order_by(columns.id)
    found = found.with_for_update(key_share=True, skip_locked=not tree)
    return (
        update(executions)
        .where(_in_batch(found, typed=typed))
        .values(assignments(rule.moves, now, not_before))
        .returning(*ROW)
    )


def _tree_ids() -> Any:
    """Return the ids of an execution, its children, their children, and so on."""
    child, step = executions.alias("child").c, executions.alias("step")
    root = bindparam("root", type_=columns.id.type)
    tree = select(step.c.id).where(step.c.id == root).cte("tree", recursive=True)
    # For a plain join PostgreSQL may read the whole table once per level.
    children = select(child.id).where(child.parent_id == tree.c.id).correlate(tree)
    is_child = in_array(step.c.id, children.scalar_subquery())
    tree = tree.union(select(step.c.id).join_from(tree, step, is_child))  # which ends cycles
    return select(tree.c.id).scalar_subquery()


def _in_batch(found: Select[Any], *, typed: bool) -> ColumnElement[bool]:
    """Return the condition that an id is one of the first `limit` that are found."""
    if typed:
        found = found.where(columns.type == bindparam("old_type", type_=Text))
    found = found.limit(bindparam("limit", type_=Integer))
    return in_array(columns.id, found.correlate(None).scalar_subquery())


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
    status = unindexed(columns.status, type_=Text())
    unused = not_(has_live_links(columns.id))
    found = select(columns.id).where(
        either,  # by the index on completed_at
        status.in_([status_literal(each) for each in statuses]) if statuses else false(),
        case((columns.idempotency_key.is_(None), plain), else_=keyed),
        unused,
    )
    found = found.order_by(columns.completed_at).with_for_update(skip_locked=True)
    # Unused still when the row is locked: to create a child locks its parent.
    pruned = delete(executions).where(_in_batch(found, typed=typed), unused)
    return pruned.returning(columns.id)


@cache
def log_statement(rule: Rule, *, for_attempt: bool, clocked: bool) -> ReturningInsert[Any]:
    """Return the INSERT of a log entry, guarded by a rule."""
    now, not_before = time_expressions(clocked=clocked)
    entry = execution_logs.c
    new: Assignments = {
        entry.execution_id: columns.id,
        entry.attempt: columns.attempts,
        entry.logged_at: not_before,
    }
    for column in (entry.id, entry.level, entry.message, entry.data):
        new[column] = bindparam(f"log_{column.name}", type_=column.type)
    # The lock prevents a concurrent delete: a failed foreign key would abort the caller's whole
    # transaction.
    guard = where_clause(rule, now, for_attempt=for_attempt)
    found = select(*new.values()).where(*guard).with_for_update(read=True, key_share=True)
    added = insert(execution_logs).from_select(list(new), found, include_defaults=False)
    return added.returning(*LOG_ROW)


@cache
def delete_statement() -> ReturningDelete[Any]:
    """Return the DELETE of an execution."""
    return delete(executions).where(columns.id == id_parameter()).returning(columns.id)
