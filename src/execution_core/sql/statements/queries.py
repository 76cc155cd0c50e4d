"""The queries of a store: a statement and its parameters, one function for each request."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

from sqlalchemy import Column, Select, TextualSelect
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate

from ...core.creation import NewExecution
from ...core.json_values import JsonMembers
from ...core.log_lines import NewLogEntry
from ...core.models import ExecutionStatus, ProgressInfo
from ...core.selections import BatchTransition, LogPage, Page, PruneRequest, Selection
from ...core.state_machine import HEARTBEAT
from ...core.transitions import Transition
from .builders import (
    columns,
    delete_statement,
    heartbeat_many_statement,
    insert_statement,
    log_statement,
    prune_statement,
    update_many_statement,
    update_statement,
)
from .many_rows import (
    insert_many_statement,
    select_many_statement,
    update_each_statement,
)
from .reads import (
    attempts_statement,
    children_statement,
    count_statement,
    history_statement,
    logs_statement,
    page_statement,
    select_statement,
    unfinished_statement,
)
from .rows import MILLISECOND

_NAMES = frozenset(column.name for column in columns)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECONDS_PER_DAY: Final = 86_400_000
Rows = Sequence[Sequence[Any]]
Statement = (
    Select[Any] | TextualSelect | ReturningInsert[Any] | ReturningUpdate[Any] | ReturningDelete[Any]
)


class Query(NamedTuple):
    """A statement, its parameters, and the verb that it carries out."""

    statement: Statement
    parameters: dict[str, Any]
    verb: str
    execution_id: str | None = None
    reserved: bool = False
    """Whether it uses the connection that is reserved for heartbeats, as it waits for no lock."""

    @property
    def bounded(self) -> bool:
        """Whether it has a time limit: a prune may take long."""
        return self.verb != "prune"


def create(creation: NewExecution, now: datetime | None) -> Query:
    """Return the INSERT of an execution: no row if the key is held or the parent is missing."""
    statement = insert_statement(
        _link_names(creation), live_parent=creation.needs_live_parent, clocked=now is not None
    )
    return Query(statement, _new_parameters(creation) | {"now": now}, "create", creation.id)


def create_many(
    creations: Sequence[NewExecution], now: datetime | None, *, locks_rows: bool
) -> Query:
    """Return the INSERT of executions: a row for each whose key is free and whose parent exists."""
    statement, rows = insert_many_statement(
        _link_names(*creations), clocked=now is not None, locks_rows=locks_rows
    )
    return Query(
        statement, {"rows": rows.encode(map(_new_parameters, creations)), "now": now}, "create"
    )


def _link_names(*creations: NewExecution) -> tuple[str, ...]:
    """Return the names of the links that some of the new executions have."""
    links = ("parent_id", "replay_of")
    return tuple(name for name in links if any(getattr(each, name) for each in creations))


def _new_parameters(creation: NewExecution) -> dict[str, Any]:
    return {
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
        "new_checkpoints": creation.checkpoints,
        "new_actor": creation.actor,
        "start_after_ms": _milliseconds(creation.start_after) or 0,
    }


def update(
    id: str, transition: Transition, token: str, now: datetime | None, *, whole: bool = True
) -> Query:
    """Return the conditional UPDATE of a transition: no row if it does not apply.

    The token distinguishes this write from every other one. Unless `whole`, the row is the status.
    """
    rule, attempt = transition.rule, transition.attempt
    statement = update_statement(
        rule,
        for_attempt=attempt is not None,
        clocked=now is not None,
        whole=whole,
        skip_locked=transition.skip_locked,
    )
    parameters = {"new_write_token": token, "now": now, **_change_parameters(id, transition)}
    return Query(statement, parameters, rule.verb, id)


def update_each(
    changes: Sequence[tuple[str, Transition]],
    token: str,
    now: datetime | None,
    *,
    locks_rows: bool,
) -> Query:
    """Return the conditional UPDATE of transitions of one rule: a row for each that applies."""
    first = changes[0][1]
    rule, for_attempt = first.rule, first.attempt is not None
    statement, rows = update_each_statement(
        rule, for_attempt=for_attempt, clocked=now is not None, locks_rows=locks_rows
    )
    given = rows.encode(_change_parameters(id, transition) for id, transition in changes)
    return Query(statement, {"rows": given, "new_write_token": token, "now": now}, rule.verb)


def _change_parameters(id: str, transition: Transition) -> dict[str, Any]:
    parameters = {"old_id": id, "old_attempt": transition.attempt}
    return parameters | {"new_actor": transition.actor, **_parameters(transition)}


def heartbeat_many(
    attempts: Sequence[tuple[str, int]], token: str, now: datetime | None, *, locks_rows: bool
) -> Query:
    """Return the statement that sends the heartbeats of attempts: a row for each that is running.

    With `locks_rows`, as PostgreSQL does, locked rows are skipped.
    """
    statement = heartbeat_many_statement(clocked=now is not None, locks_rows=locks_rows)
    parameters = {"old_attempts": json.dumps(attempts), "new_write_token": token, "now": now}
    return Query(statement, parameters, HEARTBEAT.verb, reserved=True)


def update_many(batch: BatchTransition, token: str, now: datetime | None) -> Query:
    """Return the UPDATE of executions that allow a transition.

    Locked rows are skipped, unless it is for a tree.
    """
    transition, type, root = batch.transition, batch.type, batch.root
    rule = transition.rule
    statement = update_many_statement(
        rule, typed=type is not None, tree=root is not None, clocked=now is not None
    )
    parameters = {"old_type": type, "limit": batch.limit, "new_write_token": token, "now": now}
    parameters |= {"root": root, "new_actor": transition.actor, **_parameters(transition)}
    return Query(statement, parameters, rule.verb)


def _parameters(transition: Transition) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name, given in transition.values.items():
        if isinstance(given, ProgressInfo):
            parameters |= {f"new_progress_{part}": value for part, value in given}
        elif name in _NAMES:
            parameters[f"new_{name}"] = given
        elif isinstance(given, int):
            parameters[name] = given
        else:
            parameters[f"{name}_ms"] = _milliseconds(cast("timedelta | None", given)) or 0
        if isinstance(given, JsonMembers):
            parameters[f"null_{name}"] = given.null_text
    return parameters


def find(column: Column[Any], value: str) -> Query:
    """Return the SELECT of the execution with an id or an idempotency key."""
    return Query(select_statement(column), {"value": value}, "get")


def find_many(column: Column[Any], values: Iterable[str]) -> Query:
    """Return the SELECT of the executions with these ids or these idempotency keys."""
    statement, rows = select_many_statement(column)
    return Query(statement, {"rows": rows.encode({"value": value} for value in values)}, "get")


def find_unfinished(ids: Sequence[str], *, children: bool) -> Query:
    """Return the SELECT of those of some ids that are live, or that have a live child."""
    return Query(unfinished_statement(children=children), {"ids": json.dumps(ids)}, "wait")


def delete(id: str) -> Query:
    """Return the DELETE of an execution: one row if it existed."""
    return Query(delete_statement(), {"old_id": id}, "delete", id)


def prune(pruning: PruneRequest, now: datetime | None) -> Query:
    """Return the DELETE of finished executions: a row for each of them."""
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
    """Return the INSERT of a log entry: no row if it may not be added."""
    rule, attempt = line.transition.rule, line.transition.attempt
    statement = log_statement(rule, for_attempt=attempt is not None, clocked=now is not None)
    parameters = {
        "old_id": line.execution_id,
        "old_attempt": attempt,
        "log_id": line.id,
        "log_level": line.level,
        "log_message": line.message,
        "log_data": line.data,
        "now": now,
    }
    return Query(statement, parameters, "log", line.execution_id)


def logs(page: LogPage) -> Query:
    """Return the SELECT of a page of a log."""
    bounds = {"before": page.before, "after": page.after}
    given = frozenset(name for name, id in bounds.items() if id is not None)
    statement = logs_statement(given, oldest_first=page.oldest_first)
    parameters = {"old_id": page.execution_id, **bounds, "limit": page.limit}
    return Query(statement, parameters, "logs", page.execution_id)


def history(id: str) -> Query:
    """Return the SELECT of an execution's history."""
    return Query(history_statement(), {"old_id": id}, "history", id)


def attempts(id: str) -> Query:
    """Return the SELECT of an execution's attempts."""
    return Query(attempts_statement(), {"old_id": id}, "attempts", id)


def page(page: Page) -> Query:
    """Return the SELECT of a page of executions."""
    conditions, parameters = _conditions(page)
    bounds = {"before": page.before, "after": page.after}
    conditions += [name for name, id in bounds.items() if id is not None]
    statement = page_statement(
        _in_order(page.statuses),
        None if page.types is None else len(page.types),
        frozenset(conditions),
        oldest_first=page.oldest_first,
    )
    return Query(statement, parameters | bounds | {"limit": page.limit}, "list")


def count(selection: Selection) -> Query:
    """Return the SELECT of the number of executions."""
    conditions, parameters = _conditions(selection)
    statement = count_statement(
        _in_order(selection.statuses),
        None if selection.types is None else len(selection.types),
        frozenset(conditions),
    )
    return Query(statement, parameters, "count")


def count_by_status(parent_id: str) -> Query:
    """Return the SELECT of the number of children by status."""
    return Query(children_statement(), {"parent_id": parent_id}, "children", parent_id)


def _conditions(selection: Selection) -> tuple[list[str], dict[str, Any]]:
    """Return the names of the conditions besides statuses and types, and all parameters."""
    given = {name: getattr(selection, name) for name in ("parent_id", "replay_of", "worker")}
    for name in ("created", "finished"):
        since, until = getattr(selection, name)
        given |= {f"{name}_since": since, f"{name}_until": until}
    conditions = [name for name, value in given.items() if value is not None]
    for name, days in (("created_since", -1), ("created_until", 1)):
        if (moment := given[name]) is not None:
            given[f"{name}_id"] = bound_of_ids(moment, days)
    types = {f"type_{n}": type for n, type in enumerate(selection.types or ())}
    return conditions, given | types


def bound_of_ids(moment: datetime, days: int) -> str:
    """Return an id that bounds the ids of a time, for clocks that differ by up to some days."""
    milliseconds = int((moment - EPOCH) / timedelta(milliseconds=1)) + days * MILLISECONDS_PER_DAY
    within = min(max(0, milliseconds), 2**48 - 1)
    return str(UUID(f"{within:012x}".ljust(32, "0" if days < 0 else "f")))


def _in_order(
    statuses: tuple[ExecutionStatus, ...] | None,
) -> tuple[ExecutionStatus, ...] | None:
    """Return statuses in one order, so that one statement serves all."""
    return None if statuses is None else tuple(s for s in ExecutionStatus if s in statuses)


def _milliseconds(duration: timedelta | None) -> int | None:
    return None if duration is None else duration // MILLISECOND
