"""Find out whether a write committed although its connection broke. Pure decisions, no I/O.

First the abandoned backend process is terminated, so that it cannot commit later. Then the database
is queried: for the id of a new row, or for the token that each write stores in its row, and each
transition in the history as well.

Each verification is a generator of queries, as in `core.steps`. It returns the rows that the write
would have returned, or None if the write left nothing: then the write is executed again.
"""

import sqlite3
from collections.abc import Callable, Generator
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ...core.creation import MAX_TRIES, NewExecution
from ...core.errors import ConcurrentUpdate, ConnectionLost, ExecutionProblem
from ...core.json_values import canonical
from ...core.log_lines import NewLogEntry
from ...core.models import Execution
from ...core.transitions import Transition
from ..driver.broken import ConnectionBroken, boot_clock
from ..schema.tables import executions
from ..statements.queries import Query, Rows, find
from ..statements.rows import FIELDS, to_execution
from . import queries

Answer = TypeVar("Answer")
VerificationSteps = Generator[Query, Rows, Answer]
Verifier = Callable[[ConnectionBroken], VerificationSteps[Rows | None]]

DRIFT: Final = 1.001
"""How much faster the database's clock may run than the clock of this machine."""
CONFLICTS: Final = ("40001", "40P01")  # serialization failure, deadlock
UNDEFINED: Final = ("42P01", "42703", "42883")  # table, column, function


class OutcomeUnknown(Exception):  # noqa: N818 - an answer rather than an error
    """It cannot be found out whether the write committed."""


def resolve_outcome(
    error: ConnectionBroken | DBAPIError, query: Query, verify: Verifier | None
) -> VerificationSteps[Rows]:
    """Return the rows that a failed query would have returned, outside the caller's transaction.

    A query that did nothing and may succeed is executed again, at most `MAX_TRIES` times.

    Raises:
        ConnectionLost: the connection broke each time. Nothing was changed.
        ConcurrentUpdate: other transactions interfered each time. Nothing was changed.
        DBAPIError: the error itself, if it is neither, or if the outcome is unknown.
    """
    for tries_left in reversed(range(MAX_TRIES)):
        problem: ExecutionProblem | None
        if isinstance(error, ConnectionBroken):
            try:
                if verify and (rows := (yield from verify(error))) is not None:
                    return rows
            except (OutcomeUnknown, ConnectionBroken, SQLAlchemyError):
                error.error.add_note(
                    f"It is unknown whether {query.verb} was committed before the connection was"
                    " lost: read the execution before you try again."
                )
                raise error.error from error.error.__cause__
            error, problem = error.error, ConnectionLost(query.verb, query.execution_id)
        else:
            problem = to_conflict(error, query)
        if problem is None:
            raise with_schema_hint(error)
        if not tries_left:
            raise problem from error
        try:
            return (yield query)
        except (ConnectionBroken, DBAPIError) as next_error:
            error = next_error
    raise AssertionError


def to_conflict(error: DBAPIError, query: Query) -> ConcurrentUpdate | None:
    """Return the conflict with another transaction that an error means, or None."""
    driver_error: Any = error.orig
    if getattr(driver_error, "sqlstate", None) in CONFLICTS or (
        getattr(driver_error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT
    ):
        return ConcurrentUpdate(query.verb, query.execution_id)
    return None


def with_schema_hint(error: DBAPIError) -> DBAPIError:
    """Return the error; if a part of the schema is missing, with a note that says what to do."""
    if is_schema_error(error):
        error.add_note(
            "The schema may be missing or outdated: check it with migrate.check(engine), and"
            " upgrade it with migrate.upgrade(engine) or execution-core migrate."
        )
    return error


def is_schema_error(error: DBAPIError) -> bool:
    """Return whether a table, a column or a function is missing."""
    driver_error: Any = error.orig
    return getattr(driver_error, "sqlstate", None) in UNDEFINED or (
        isinstance(driver_error, sqlite3.OperationalError)
        and any(part in str(driver_error) for part in ("no such", "no column named"))
    )


def verify_prune(broken: ConnectionBroken) -> VerificationSteps[Rows | None]:
    """Raise OutcomeUnknown: deleted rows leave nothing to query."""
    raise OutcomeUnknown from broken
    yield


def verify_create(new: NewExecution, broken: ConnectionBroken) -> VerificationSteps[Rows | None]:
    """Query the new execution's id, which no other create uses."""
    yield from _terminate_backend(broken)
    return (yield find(executions.c.id, new.id)) or None


def verify_log(new: NewLogEntry, broken: ConnectionBroken) -> VerificationSteps[Rows | None]:
    """Query the new log entry's id, which no other entry has."""
    yield from _terminate_backend(broken)
    return (yield queries.find_log_entry(new.execution_id, new.id)) or None


def verify_delete(id: str, broken: ConnectionBroken) -> VerificationSteps[Rows | None]:
    """Report success if the row is gone, also if another caller deleted it."""
    yield from _terminate_backend(broken)
    return None if (yield find(executions.c.id, id)) else [(id,)]


def verify_update(
    id: str,
    transition: Transition,
    token: str,
    began: float,
    broken: ConnectionBroken,
    *,
    whole: bool,
) -> VerificationSteps[Rows | None]:
    """Find the write's token in the row or, if others changed the row since, in the history.

    The history contains transitions alone, no progress and no checkpoints. If another write has
    replaced the token of such a write since the call began, it may have come before or after it.
    Then the outcome is known only if the row already has the values to set: the answer is the same
    in both cases. A deleted row has no answer. `began` is when the call began, by `boot_clock`.
    """
    yield from _terminate_backend(broken)
    rows = yield queries.find_write(id, token)
    if not rows:
        return []
    row, committed, now = queries.row_after_write(rows[0], token)
    if not committed:
        current = to_execution(row)
        # Compares times of the database's clock alone; `updated_at` of a row never decreases.
        call_began = now - timedelta(seconds=DRIFT * (boot_clock() - began))
        # A heartbeat sets neither of these: executing it again does no harm.
        only_in_row = transition.values.keys() & {"progress", "checkpoints"}
        if current.updated_at < call_began or not only_in_row:
            return None
        if not _already_applied(transition, current, now):
            raise OutcomeUnknown
    return [row if whole else [row[FIELDS.index("status")]]]


def verify_batch(token: str, broken: ConnectionBroken) -> VerificationSteps[Rows | None]:
    """Return the rows unchanged since this batch wrote them; rows others changed are omitted."""
    yield from _terminate_backend(broken)
    rows = yield queries.find_batch_write(token)
    if not rows:
        return None
    return [unchanged for row in rows if (unchanged := queries.row_if_unchanged(row))]


def _terminate_backend(broken: ConnectionBroken) -> VerificationSteps[None]:
    """Terminate the abandoned backend, so it cannot commit later.

    Raises:
        OutcomeUnknown: it did not end in time, or a pooler hides the backend processes.
    """
    if broken.backend is None:
        return
    for _ in range(2):
        age = timedelta(seconds=(boot_clock() - broken.backend.seen_at) / DRIFT)
        ((own, terminated),) = yield queries.terminate_backend(broken.backend.number, age)
        if not broken.is_own(own):
            break
        if terminated is not False:
            return
        # False also if the process ended by itself at that moment: look once more.
    raise OutcomeUnknown


def _already_applied(transition: Transition, current: Execution, now: datetime) -> bool:
    """Return whether a transition is allowed, and its progress and checkpoints are set already."""
    changed = transition.apply(current, now)
    return (
        changed is not None
        and changed.progress == current.progress
        and canonical(changed.checkpoints) == canonical(current.checkpoints)
    )
