"""Pure translations: what a store is asked → one SQLAlchemy statement.

Statements that change anything are built once per rule; what varies from call to call is bound.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple, cast

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

from ..creation import Creation
from ..execution import ExecutionStatus, ProgressInfo
from ..logs import Line
from ..store import Batch, Page, Pruning
from ..transitions import Condition, Rule, Transition
from ..values import Entry
from .moves import (
    allowed,
    due_at,
    duration,
    guarded,
    id_given,
    injected,
    new_value,
    spelt,
    times,
    written,
)
from .rows import LOG_ROW, ROW
from .schema import execution_logs, executions
from .types import database_now, in_use, later, one_of, unindexed

columns = executions.c
_NAMES = frozenset(column.name for column in columns)
_MILLISECOND = timedelta(milliseconds=1)


Statement = Select[Any] | ReturningInsert[Any] | ReturningUpdate[Any] | ReturningDelete[Any]


class Query(NamedTuple):
    """A statement and its parameters, and what it is for."""

    statement: Statement
    parameters: dict[str, Any]
    verb: str
    execution_id: str | None = None


def create(creation: Creation, now: datetime | None) -> Query:
    """One INSERT, which returns no row when the key is taken or the parent is missing."""
    return Query(
        _insert(
            tuple(name for name in ("parent_id", "replay_of") if getattr(creation, name)),
            clocked=now is not None,
        ),
        {
            "new_id": creation.id,
            "new_type": creation.type,
            "new_payload": creation.payload,
            "new_max_attempts": creation.max_attempts,
            "new_timeout_ms": _milliseconds(creation.timeout),
            "new_idempotency_key": creation.idempotency_key,
            "new_fingerprint": creation.fingerprint,
            "new_parent_id": creation.parent_id,
            "new_replay_of": creation.replay_of,
            "new_metadata": creation.metadata,
            "start_after_ms": _milliseconds(creation.start_after),
            "now": now,
        },
        "create",
        creation.id,
    )


def change(
    id: str, transition: Transition, token: str, now: datetime | None, *, whole: bool = True
) -> Query:
    """One conditional UPDATE, which returns no row when the transition does not apply.

    Else it returns the row, or, where it need not be whole, the status alone. The token tells this
    write from all others.
    """
    statement = _update(
        transition.rule,
        fenced=transition.attempt is not None,
        clocked=now is not None,
        whole=whole,
    )
    parameters = {
        "old_id": id,
        "old_attempt": transition.attempt,
        "new_write_token": token,
        "now": now,
    }
    return Query(statement, parameters | _given(transition), transition.rule.verb, id)


def change_many(batch: Batch, token: str, now: datetime | None) -> Query:
    """One UPDATE of the executions that allow a transition and are in nobody else's hands."""
    statement = _update_many(
        batch.transition.rule, typed=batch.type is not None, clocked=now is not None
    )
    parameters = {
        "old_type": batch.type,
        "limit": batch.limit,
        "new_write_token": token,
        "now": now,
    }
    rule = batch.transition.rule
    return Query(statement, parameters | _given(batch.transition), rule.verb)


def _given(transition: Transition) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name, given in transition.given.items():
        if isinstance(given, ProgressInfo):
            parameters |= {f"new_progress_{part}": value for part, value in given}
        elif name in _NAMES:
            parameters[f"new_{name}"] = given
        else:
            parameters[f"{name}_ms"] = _milliseconds(cast("timedelta | None", given))
        if isinstance(given, Entry):
            parameters[f"null_{name}"] = given.null_text
    return parameters


def find(column: Column[Any], value: str) -> Query:
    """The execution whose id or idempotency key this is."""
    return Query(_select(column), {"value": value}, "get")


def remove(id: str) -> Query:
    """One DELETE, which returns the row that was there."""
    return Query(_delete(), {"old_id": id}, "delete", id)


def prune(pruning: Pruning, now: datetime | None) -> Query:
    """One DELETE, which returns a row for each execution that it removed."""
    statement = _prune(pruning.statuses, typed=pruning.type is not None, clocked=now is not None)
    parameters = {
        "old_type": pruning.type,
        "older_than_ms": _milliseconds(pruning.older_than),
        "keys_older_than_ms": _milliseconds(pruning.keys_older_than),
        "least_ms": _milliseconds(min(pruning.older_than, pruning.keys_older_than)),
        "limit": pruning.limit,
        "now": now,
    }
    return Query(statement, parameters, "prune")


def log(line: Line, now: datetime | None) -> Query:
    """One INSERT, which returns no row when the line may not be added."""
    transition = line.transition
    parameters = {
        "old_id": line.execution_id,
        "old_attempt": transition.attempt,
        "log_id": line.id,
        "log_level": line.level,
        "log_message": line.message,
        "log_data": line.data,
        "now": now,
    }
    return Query(
        _log(transition.rule, fenced=transition.attempt is not None, clocked=now is not None),
        parameters,
        "log",
        line.execution_id,
    )


def logs(id: str, limit: int, before: str | None) -> Query:
    """The log of an execution, newest first."""
    statement = _logs(from_the_end=before is None)
    return Query(statement, {"old_id": id, "before": before, "limit": limit}, "logs", id)


def page(page: Page) -> Query:
    """The executions that a page includes."""
    given = {"type": page.type, "parent_id": page.parent_id, "before": page.before}
    conditions = frozenset(name for name, value in given.items() if value is not None)
    statuses = page.statuses
    if statuses is not None:  # in one order, whatever the caller's: one statement
        statuses = tuple(status for status in ExecutionStatus if status in statuses)
    return Query(_page(statuses, conditions), {**given, "limit": page.limit}, "list")


@cache
def _insert(linked: tuple[str, ...], *, clocked: bool) -> ReturningInsert[Any]:
    # SQLite compiles its ON CONFLICT as well. Here, since it takes long to import.
    from sqlalchemy.dialects.postgresql import insert as upsert  # noqa: PLC0415

    given = (
        *(columns.id, columns.type, columns.payload, columns.max_attempts, columns.timeout_ms),
        *(columns.idempotency_key, columns.fingerprint, columns.metadata),
    )
    new: dict[Column[Any], ColumnElement[Any]] = {column: new_value(column) for column in given}
    now = injected() if clocked else database_now()
    new |= {columns.created_at: now, columns.updated_at: now}
    new[columns.retry_at] = later(now, duration("start_after"))
    statement = upsert(executions)
    links = [columns[name] for name in linked]
    if links:
        # Those it names are looked up and locked by the INSERT itself: a foreign key that failed
        # would abort the caller's whole transaction.
        tables = [executions.alias(link.name) for link in links]
        named = [table.c.id for table in tables]
        new |= dict(zip(links, named, strict=True))
        both: FromClause = tables[0]
        for other in tables[1:]:
            both = both.join(other, true())  # else SQLAlchemy warns of a forgotten condition
        found = (
            select(*new.values())
            .select_from(both)
            .where(*(id == new_value(link) for link, id in zip(links, named, strict=True)))
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
def _update(rule: Rule, *, fenced: bool, clocked: bool, whole: bool) -> ReturningUpdate[Any]:
    now, not_before = times(clocked=clocked)
    guard = guarded(rule, now, fenced=fenced)
    changes = written(rule.moves, now, not_before)
    answer = ROW if whole else [columns.status]
    return update(executions).where(*guard).values(changes).returning(*answer)


@cache
def _update_many(rule: Rule, *, typed: bool, clocked: bool) -> ReturningUpdate[Any]:
    now, not_before = times(clocked=clocked)
    guard = [or_(*(allowed(move, now) for move in rule.moves))]
    if typed:
        guard.append(columns.type == bindparam("old_type", type_=Text))
    # What another transaction holds is skipped; what it has changed meanwhile is looked at again.
    # No lock on the key: children may be created under these. And no condition outside but the
    # ids: by a second one PostgreSQL might read all that is due, and look each up in the ids.
    waiting = any(move.when is Condition.DUE for move in rule.moves)
    chosen = (
        select(columns.id)
        .where(*guard)
        .order_by(*((due_at(), columns.id) if waiting else ()))
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(key_share=True, skip_locked=True)
        .correlate(None)
        .scalar_subquery()
    )
    return (
        update(executions)
        .where(one_of(columns.id, chosen))
        .values(written(rule.moves, now, not_before))
        .returning(*ROW)
    )


@cache
def _select(column: Column[Any]) -> Select[Any]:
    return select(*ROW).where(column == bindparam("value", type_=column.type))


@cache
def _page(statuses: tuple[ExecutionStatus, ...] | None, conditions: frozenset[str]) -> Select[Any]:
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
        return found(*ROW, where=[columns.status == spelt(statuses[0]), *where])
    # A page of each status by its index, then the newest of those. All at once would have to be
    # sorted, however much of it is finished.
    pages = [
        found(columns.id, where=[columns.status == spelt(status), *where]).subquery()
        for status in statuses
    ]
    ids = union_all(*(select(page.c.id) for page in pages)).subquery()
    return found(*ROW, where=[columns.id.in_(select(ids.c.id))])


@cache
def _prune(
    statuses: tuple[ExecutionStatus, ...], *, typed: bool, clocked: bool
) -> ReturningDelete[Any]:
    now, _ = times(clocked=clocked)
    plain, keyed, either = (
        columns.completed_at <= later(now, -duration(age))
        for age in ("older_than", "keys_older_than", "least")
    )
    guard = [
        either,  # by its index, which is in the order in which they came to rest
        unindexed(columns.status, type_=Text()).in_([spelt(status) for status in statuses])
        if statuses
        else false(),
        case((columns.idempotency_key.is_(None), plain), else_=keyed),
        not_(in_use(columns.id)),
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
    # Once more now that it is locked: whoever creates a child holds a lock on its parent.
    return (
        delete(executions)
        .where(one_of(columns.id, chosen), not_(in_use(columns.id)))
        .returning(columns.id)
    )


@cache
def _log(rule: Rule, *, fenced: bool, clocked: bool) -> ReturningInsert[Any]:
    now, not_before = times(clocked=clocked)
    new: dict[Column[Any], ColumnElement[Any]] = {
        execution_logs.c.execution_id: columns.id,
        execution_logs.c.attempt: columns.attempts,
        execution_logs.c.logged_at: not_before,
    }
    for name in ("id", "level", "message", "data"):
        column = execution_logs.c[name]
        new[column] = bindparam(f"log_{name}", type_=column.type)
    # Locked, lest it be deleted meanwhile: a foreign key that failed would abort the caller's
    # whole transaction.
    guard = guarded(rule, now, fenced=fenced)
    found = select(*new.values()).where(*guard).with_for_update(read=True, key_share=True)
    return (
        insert(execution_logs)
        .from_select(list(new), found, include_defaults=False)
        .returning(*LOG_ROW)
    )


@cache
def _logs(*, from_the_end: bool) -> Select[Any]:
    logged = execution_logs.c
    where = [logged.execution_id == id_given()]
    if not from_the_end:
        where.append(logged.id < bindparam("before", type_=logged.id.type))
    limit = bindparam("limit", type_=Integer)
    return select(*LOG_ROW).where(*where).order_by(logged.id.desc()).limit(limit)


@cache
def _delete() -> ReturningDelete[Any]:
    return delete(executions).where(columns.id == id_given()).returning(columns.id)


def _milliseconds(duration: timedelta | None) -> int | None:
    return None if duration is None else duration // _MILLISECOND
