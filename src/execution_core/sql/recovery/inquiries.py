"""What became of a write whose answer was lost with its connection: pure decisions.

First the server process that was at it is ended, lest it carry the write out later. Then the
database is asked: for the id of what was created, or for the token that each write leaves in its
row, and each move in the history as well.

An inquiry yields what to ask, and is sent the rows or thrown the error. What it returns is what the
write would have answered, or None when nothing of it is there: then it is made again.
"""

import json
import sqlite3
from collections.abc import Callable, Generator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ...core.creation import MAX_TRIES, NewExecution
from ...core.errors import ConcurrentUpdate, ConnectionLost, ExecutionProblem
from ...core.log_lines import NewLogEntry
from ...core.models import Execution
from ...core.transitions import Transition
from ..driver.lost import ConnectionBroken, boot_clock
from ..schema.tables import executions
from ..statements.queries import Query, find
from ..statements.rows import to_execution
from . import queries

Answer = TypeVar("Answer")
Rows = Sequence[Sequence[Any]]
VerificationSteps = Generator[Query, Rows, Answer]
Verifier = Callable[["ConnectionBroken"], VerificationSteps[Rows | None]]

DRIFT: Final = 1.001
"""How much faster the database's clock may go than this machine's."""
CONFLICTS: Final = ("40001", "40P01")  # serialization failure, deadlock
UNDEFINED: Final = ("42P01", "42703", "42883")  # table, column, function


class OutcomeUnknown(Exception):  # noqa: N818 - the answer to a question
    """There is no way to tell."""


def resolve_outcome(
    error: ConnectionBroken | DBAPIError, query: Query, inquire: Verifier
) -> VerificationSteps[Rows]:
    """Find out what a query has done that ended in an error outside any transaction.

    It is made again where it has done nothing and may succeed, a bounded number of times.

    Raises:
        ConnectionLost: the connection was lost time after time. Nothing was changed.
        ConcurrentUpdate: other transactions came between time after time. Nothing was changed.
        DBAPIError: the error itself, where it is neither, or where there is no way to tell.
    """
    for left in reversed(range(MAX_TRIES)):
        problem: ExecutionProblem | None
        if isinstance(error, ConnectionBroken):
            try:
                if (found := (yield from inquire(error))) is not None:
                    return found
            except (OutcomeUnknown, ConnectionBroken, SQLAlchemyError):
                error.error.add_note(
                    f"Nobody can tell whether {query.verb} was carried out before the connection"
                    " was lost: look where the execution stands before you try again."
                )
                raise error.error from error.error.__cause__
            error, problem = error.error, ConnectionLost(query.verb, query.execution_id)
        else:
            problem = to_conflict(error, query)
        if problem is None:
            raise with_schema_hint(error)
        if not left:
            raise problem from error
        try:
            return (yield query)
        except (ConnectionBroken, DBAPIError) as another:
            error = another
    raise AssertionError


def to_conflict(error: DBAPIError, query: Query) -> ConcurrentUpdate | None:
    """Return what an error means that another transaction caused; None for any other error."""
    driver: Any = error.orig
    if getattr(driver, "sqlstate", None) in CONFLICTS or (
        getattr(driver, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT
    ):
        return ConcurrentUpdate(query.verb, query.execution_id)
    return None


def with_schema_hint(error: DBAPIError) -> DBAPIError:
    """Return an error with a note on what to do, where something of the schema is missing."""
    driver: Any = error.orig
    if getattr(driver, "sqlstate", None) in UNDEFINED or (
        isinstance(driver, sqlite3.OperationalError)
        and any(said in str(driver) for said in ("no such", "no column named"))
    ):
        error.add_note(
            "Is the schema up to date? migrate.check(engine) tells, and execution-core migrate or"
            " migrate.upgrade(engine) brings it there."
        )
    return error


def verify_read(lost: ConnectionBroken) -> VerificationSteps[Rows | None]:  # noqa: ARG001
    """Nothing was written: read again."""
    return None
    yield


def verify_prune(lost: ConnectionBroken) -> VerificationSteps[Rows | None]:
    """What was deleted has left no trace."""
    raise OutcomeUnknown from lost
    yield


def verify_create(lost: ConnectionBroken, creation: NewExecution) -> VerificationSteps[Rows | None]:
    """Its id was made for it alone."""
    yield from _terminate_backend(lost)
    return (yield find(executions.c.id, creation.id)) or None


def verify_log(lost: ConnectionBroken, line: NewLogEntry) -> VerificationSteps[Rows | None]:
    """Its id was made for it alone."""
    yield from _terminate_backend(lost)
    return (yield queries.find_log_entry(line.execution_id, line.id)) or None


def verify_delete(lost: ConnectionBroken, id: str) -> VerificationSteps[Rows | None]:
    """It is gone, whoever deleted it."""
    yield from _terminate_backend(lost)
    return None if (yield find(executions.c.id, id)) else [(id,)]


def verify_update(
    lost: ConnectionBroken,
    id: str,
    transition: Transition,
    token: str,
    *,
    whole: bool,
    began: float,
) -> VerificationSteps[Rows | None]:
    """The token is in the row, or, when somebody has moved it on since, in the history.

    Progress and checkpoints are in no history. Nobody can tell what became of them when the row was
    written to since the call began, as that may have been before or after; unless they are as they
    were to be, and might be set once more: then it makes no difference. What was deleted has no row
    to answer.
    """
    yield from _terminate_backend(lost)
    found = yield queries.find_write(id, token)
    if not found:
        return []
    row, made, at = queries.row_after_write(found[0], token)
    if not made:
        current = to_execution(row)
        # By the database's clock alone; and the time of a row never goes back.
        since = at - timedelta(seconds=DRIFT * (boot_clock() - began))
        if current.updated_at < since or not _not_in_history(transition):
            return None
        if not _already_applied(transition, current, at):
            raise OutcomeUnknown
    return [row if whole else queries.status_column(row)]


def verify_batch(lost: ConnectionBroken, token: str) -> VerificationSteps[Rows | None]:
    """Those that are as it left them; what somebody has moved on since is no longer a caller's."""
    yield from _terminate_backend(lost)
    moved = yield queries.find_batch_write(token)
    return [left for row in moved if (left := queries.row_if_unchanged(row))] if moved else None


def _terminate_backend(lost: ConnectionBroken) -> VerificationSteps[None]:
    """Make sure that a server process that nobody talks to any more is at nothing."""
    if lost.backend is None:
        return
    for _ in range(2):
        age = timedelta(seconds=(boot_clock() - lost.backend.met) / DRIFT)
        ((own, ended),) = yield queries.terminate_backend(lost.backend.number, age)
        if not lost.is_own(own):
            break
        if ended is not False:  # which also says that it was just about to end by itself
            return
    raise OutcomeUnknown


def _not_in_history(transition: Transition) -> bool:
    """Tell whether it sets something without a move: a heartbeat may as well be made again."""
    return transition.values.keys() & {"progress", "checkpoints"} != set()


def _already_applied(transition: Transition, found: Execution, now: datetime) -> bool:
    """Tell whether a transition is allowed, and what it sets is so already."""
    moved = transition.apply(found, now)
    return (
        moved is not None
        and moved.progress == found.progress
        and _text(moved.checkpoints) == _text(found.checkpoints)
    )


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # unlike Python's, its 1 is neither 1.0 nor true
