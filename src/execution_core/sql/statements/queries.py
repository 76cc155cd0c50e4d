"""Statements with their parameters: what a store asks the database, one function per request."""

from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    Column,
    Select,
)
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate

from ...core.creation import NewExecution
from ...core.json_values import JsonMember
from ...core.log_lines import NewLogEntry
from ...core.models import ExecutionStatus, ProgressInfo
from ...core.selections import BatchTransition, Page, PruneRequest
from ...core.transitions import Transition
from .builders import (
    columns,
    delete_statement,
    insert_statement,
    log_statement,
    logs_statement,
    page_statement,
    prune_statement,
    select_statement,
    update_many_statement,
    update_statement,
)

_NAMES = frozenset(column.name for column in columns)
_MILLISECOND = timedelta(milliseconds=1)


Statement = Select[Any] | ReturningInsert[Any] | ReturningUpdate[Any] | ReturningDelete[Any]


class Query(NamedTuple):
    """A statement and its parameters, and what it is for."""

    statement: Statement
    parameters: dict[str, Any]
    verb: str
    execution_id: str | None = None


def create(creation: NewExecution, now: datetime | None) -> Query:
    """One INSERT, which returns no row when the key is taken or the parent is missing."""
    return Query(
        insert_statement(
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
            "start_after_ms": _milliseconds(creation.start_after) or 0,
            "now": now,
        },
        "create",
        creation.id,
    )


def update(
    id: str, transition: Transition, token: str, now: datetime | None, *, whole: bool = True
) -> Query:
    """One conditional UPDATE, which returns no row when the transition does not apply.

    Else it returns the row, or, where it need not be whole, the status alone. The token tells this
    write from all others.
    """
    statement = update_statement(
        transition.rule,
        for_attempt=transition.attempt is not None,
        clocked=now is not None,
        whole=whole,
    )
    parameters = {
        "old_id": id,
        "old_attempt": transition.attempt,
        "new_write_token": token,
        "now": now,
    }
    return Query(statement, parameters | _parameters(transition), transition.rule.verb, id)


def update_many(batch: BatchTransition, token: str, now: datetime | None) -> Query:
    """One UPDATE of the executions that allow a transition and are in nobody else's hands."""
    statement = update_many_statement(
        batch.transition.rule, typed=batch.type is not None, clocked=now is not None
    )
    parameters = {
        "old_type": batch.type,
        "limit": batch.limit,
        "new_write_token": token,
        "now": now,
    }
    rule = batch.transition.rule
    return Query(statement, parameters | _parameters(batch.transition), rule.verb)


def _parameters(transition: Transition) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name, given in transition.values.items():
        if isinstance(given, ProgressInfo):
            parameters |= {f"new_progress_{part}": value for part, value in given}
        elif name in _NAMES:
            parameters[f"new_{name}"] = given
        else:
            parameters[f"{name}_ms"] = _milliseconds(cast("timedelta | None", given)) or 0
        if isinstance(given, JsonMember):
            parameters[f"null_{name}"] = given.null_text
    return parameters


def find(column: Column[Any], value: str) -> Query:
    """The execution whose id or idempotency key this is."""
    return Query(select_statement(column), {"value": value}, "get")


def delete(id: str) -> Query:
    """One DELETE, which returns the row that was there."""
    return Query(delete_statement(), {"old_id": id}, "delete", id)


def prune(pruning: PruneRequest, now: datetime | None) -> Query:
    """One DELETE, which returns a row for each execution that it removed."""
    statement = prune_statement(
        pruning.statuses, typed=pruning.type is not None, clocked=now is not None
    )
    parameters = {
        "old_type": pruning.type,
        "older_than_ms": _milliseconds(pruning.older_than),
        "keys_older_than_ms": _milliseconds(pruning.keys_older_than),
        "least_ms": _milliseconds(min(pruning.older_than, pruning.keys_older_than)),
        "limit": pruning.limit,
        "now": now,
    }
    return Query(statement, parameters, "prune")


def log(line: NewLogEntry, now: datetime | None) -> Query:
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
        log_statement(
            transition.rule, for_attempt=transition.attempt is not None, clocked=now is not None
        ),
        parameters,
        "log",
        line.execution_id,
    )


def logs(id: str, limit: int, before: str | None) -> Query:
    """The log of an execution, newest first."""
    statement = logs_statement(from_the_end=before is None)
    return Query(statement, {"old_id": id, "before": before, "limit": limit}, "logs", id)


def page(page: Page) -> Query:
    """The executions that a page includes."""
    given = {"type": page.type, "parent_id": page.parent_id, "before": page.before}
    conditions = frozenset(name for name, value in given.items() if value is not None)
    statuses = page.statuses
    if statuses is not None:  # in one order, whatever the caller's: one statement
        statuses = tuple(status for status in ExecutionStatus if status in statuses)
    return Query(page_statement(statuses, conditions), {**given, "limit": page.limit}, "list")


def _milliseconds(duration: timedelta | None) -> int | None:
    return None if duration is None else duration // _MILLISECOND
