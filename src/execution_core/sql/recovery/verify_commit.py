"""Find out whether a write committed although its connection broke. Pure decisions, no I/O.

First the abandoned server process is ended, so that it cannot commit later. Then the database is
queried: for the id of a new row, or for the token that each write stores in its row, and each
transition in the history as well. What is found has committed, whatever happened to the server
process. What is not found was not committed only if the process has certainly ended: behind a
pooler, after a failover or a restart, and while it waits for a standby, it is unknown.

Each verification is a generator of queries, as in `core.steps`. It returns the rows that the write
would have returned, or None if the write left nothing: then the write is executed again.
"""

import builtins
import sqlite3
from collections.abc import Callable, Generator, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar

from sqlalchemy.exc import MissingGreenlet, SQLAlchemyError, TimeoutError  # noqa: A004

from ...core.creation import MAX_TRIES, NewExecution
from ...core.errors import ConcurrentUpdate, ConnectionLost, ExecutionProblem, InvalidValue
from ...core.json_values import canonical
from ...core.log_lines import NewLogEntry
from ...core.models import Execution
from ...core.state_machine import Rule
from ...core.transitions import Transition
from ..driver.session import Backend, ConnectionBroken, boot_clock
from ..schema.tables import executions
from ..statements.queries import Query, Rows, find, find_many
from ..statements.rows import FIELDS, to_execution
from . import queries

Answer = TypeVar("Answer")
VerificationSteps = Generator[Query, Rows, Answer]
Verifier = Callable[[bool], VerificationSteps[Rows | None]]
"""Its argument says whether the write can commit no more."""

DRIFT: Final = 1.001
"""How much faster the database's clock may run than the clock of this machine."""
SECONDS_TO_END: Final = 0.01
"""How long a process may still take that was about to end by itself."""
SECONDS_FOR_STANDBY: Final = 5
CONFLICTS: Final = ("40001", "40P01")  # serialization failure, deadlock
ADVICE: Final[dict[str | None, str]] = {
    "55P03": "The call waited for a lock that another transaction holds, perhaps one of this"
    " program. Nothing was changed: end that transaction, or wait longer with"
    " connect(url, lock_timeout=...).",
    "57014": "The call took too long, or an administrator cancelled it. Nothing was changed: find"
    " out why the database is slow, or wait longer with connect(url, call_timeout=...).",
}
TOO_LATE: Final = (
    "The call took longer than call_timeout, so its connection was closed. Nothing was changed: the"
    " server does not answer, or another transaction holds a lock, perhaps one of this program."
)
POOL_EXHAUSTED: Final = (
    "All connections of the engine's pool were in use. Nothing was changed: return connections"
    " earlier, or make the pool larger: create_engine(url, pool_size=...)."
)
ASYNC_DRIVER: Final = (
    "The engine has a driver for asyncio: use AsyncSqlExecutionStore(create_async_engine(url)), or"
    " call this store in run_sync."
)
UNDEFINED: Final = ("42P01", "42703", "42883")  # table, column, function


class OutcomeUnknown(Exception):  # noqa: N818 - an answer rather than an error
    """It cannot be found out whether the write committed."""


CANNOT_ASK: Final = (
    OutcomeUnknown,
    ConnectionBroken,
    SQLAlchemyError,
    builtins.TimeoutError,  # all connections are in use
    InvalidValue,  # a setting of the connection is refused
)


def resolve_outcome(
    error: ConnectionBroken | SQLAlchemyError, query: Query, verify: Verifier | None
) -> VerificationSteps[Rows]:
    """Return the rows that a failed query would have returned, outside the caller's transaction.

    A query that did nothing and may succeed is executed again, at most `MAX_TRIES` times.

    Raises:
        ConnectionLost: the connection broke each time. Nothing was changed.
        ConcurrentUpdate: other transactions interfered each time. Nothing was changed.
        SQLAlchemyError: the error itself, if it is neither, or if the outcome is unknown.
    """
    for tries_left in reversed(range(MAX_TRIES)):
        problem: ExecutionProblem | None
        if isinstance(error, ConnectionBroken):
            try:
                if verify and (rows := (yield from _find_outcome(error, verify))) is not None:
                    return rows
            except CANNOT_ASK:
                error.error.add_note(
                    f"It is unknown whether {query.verb} was committed before the connection was"
                    " lost: read the execution before you try again."
                )
                raise error.error from error.error.__cause__
            if error.is_late:
                error.error.add_note(TOO_LATE)
                raise error.error from error.error.__cause__
            error, problem = error.error, ConnectionLost(query.verb, query.execution_id)
        else:
            problem = to_conflict(error, query)
        if problem is None:
            raise with_advice(error)
        if not tries_left:
            raise problem from error
        try:
            return (yield query)
        except (ConnectionBroken, SQLAlchemyError) as next_error:
            error = next_error
    raise AssertionError


def _find_outcome(broken: ConnectionBroken, verify: Verifier) -> VerificationSteps[Rows | None]:
    settled = yield from _settle(broken.backend)
    rows = yield from verify(settled)
    if rows is None and not settled:
        raise OutcomeUnknown
    if rows is not None and broken.backend is not None:
        yield queries.wait_for_standby()
    return rows


def to_conflict(error: SQLAlchemyError, query: Query) -> ConcurrentUpdate | None:
    """Return the conflict with another transaction that an error means, or None."""
    driver_error = getattr(error, "orig", None)
    if getattr(driver_error, "sqlstate", None) in CONFLICTS or (
        getattr(driver_error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT
    ):
        return ConcurrentUpdate(query.verb, query.execution_id)
    return None


def with_advice(error: SQLAlchemyError) -> SQLAlchemyError:
    """Return the error, with a note that says what to do if its cause is known."""
    if is_schema_error(error):
        error.add_note(
            "The schema may be missing or outdated: check it with migrate.check(engine), and"
            " upgrade it with migrate.upgrade(engine) or execution-core migrate; if the store has"
            " schema=, give it there too."
        )
    elif isinstance(error, MissingGreenlet):
        error.add_note(ASYNC_DRIVER)
    elif isinstance(error, TimeoutError):
        error.add_note(POOL_EXHAUSTED)
    elif advice := ADVICE.get(getattr(getattr(error, "orig", None), "sqlstate", None)):
        error.add_note(advice)
    return error


def is_schema_error(error: SQLAlchemyError) -> bool:
    """Return whether a table, a column or a function is missing."""
    driver_error = getattr(error, "orig", None)
    return getattr(driver_error, "sqlstate", None) in UNDEFINED or (
        isinstance(driver_error, sqlite3.OperationalError)
        and any(part in str(driver_error) for part in ("no such", "no column named"))
    )


def verify_unknowable(_settled: bool) -> VerificationSteps[Rows | None]:
    """Raise OutcomeUnknown: nothing that could be queried tells what was written."""
    raise OutcomeUnknown
    yield


def verify_create(new: NewExecution, _settled: bool) -> VerificationSteps[Rows | None]:
    """Query the new execution's id, which no other create uses."""
    return (yield find(executions.c.id, new.id)) or None


def verify_create_many(ids: Sequence[str], _settled: bool) -> VerificationSteps[Rows | None]:
    """Query the ids of new executions, which no other create uses: one statement created them."""
    return (yield find_many(executions.c.id, ids)) or None


def verify_log(new: NewLogEntry, _settled: bool) -> VerificationSteps[Rows | None]:
    """Query the new log entry's id, which no other entry has."""
    return (yield queries.find_log_entry(new.execution_id, new.id)) or None


def verify_delete(id: str, _settled: bool) -> VerificationSteps[Rows | None]:
    """Report success if the row is gone, also if another caller deleted it."""
    return None if (yield find(executions.c.id, id)) else [(id,)]


def verify_update(
    id: str,
    transition: Transition,
    token: str,
    began: float,
    settled: bool,
    *,
    whole: bool,
) -> VerificationSteps[Rows | None]:
    """Find the write's token in the row or, if others changed the row since, in the history.

    The history contains changes of the status alone. If another write has replaced the token of a
    write without such a change since the call began, it may have come before or after it. Then the
    outcome is known only if the row already has the values to set: the answer is the same in both
    cases. A deleted row has no answer. `began` is when the call began, by `boot_clock`.
    """
    rows = yield queries.find_write(id, token)
    if not rows:
        return []
    row, committed, now = queries.row_after_write(rows[0], transition, token)
    if not committed:
        current = to_execution(row)
        # Compares times of the database's clock alone; `updated_at` of a row never decreases.
        call_began = now - timedelta(seconds=DRIFT * (boot_clock() - began))
        # A heartbeat has no values: executing it again does no harm.
        only_in_row = transition.values and any(not each.target for each in transition.rule.moves)
        if current.updated_at < call_began or not only_in_row:
            return None
        if not settled or not _already_applied(transition, current, now):
            raise OutcomeUnknown
    return [row if whole else [row[FIELDS.index("status")]]]


def verify_each(
    changes: Sequence[tuple[str, Transition]], token: str, _settled: bool
) -> VerificationSteps[Rows | None]:
    """Find the token of one write to many executions: if one row has it, the write committed.

    If no row has it, the write changed none of them, or was not committed, or other writes have
    replaced the token: that is possible without a trace if the rule changes no status.
    """
    transitions = dict(changes)
    rows = yield queries.find_writes(transitions, token)
    found = [
        queries.row_after_write(row, transitions[row[FIELDS.index("id")]], token) for row in rows
    ]
    changed = [row for row, committed, _ in found if committed]
    if not changed and any(not move.target for move in changes[0][1].rule.moves):
        raise OutcomeUnknown
    return changed or None


def verify_batch(token: str, rule: Rule, _settled: bool) -> VerificationSteps[Rows | None]:
    """Return the rows unchanged since this batch wrote them; rows others changed are omitted."""
    rows = yield queries.find_batch_write(token, rule)
    if not rows:
        return None
    return [unchanged for row in rows if (unchanged := queries.row_if_unchanged(row))]


def _settle(backend: Backend | None) -> VerificationSteps[bool]:
    """End the server process of a broken connection; return whether it can commit no more.

    If not, only a write that is found is known: one that is not found may still commit.
    """
    if backend is None:
        return True
    if backend.pooled or backend.started is None:
        return False
    for seconds in (0, SECONDS_TO_END, *[1] * SECONDS_FOR_STANDBY):
        ((state,),) = yield queries.end_backend(backend, seconds)
        if state == queries.ENDED:
            return True
        # A process that ends by itself while it is to be terminated is "still ending". A long pause
        # before the next look would blur when the call began: see `verify_update`.
        if state != queries.WAITS and not (state == queries.STILL_ENDING and not seconds):
            break
    return False


def _already_applied(transition: Transition, current: Execution, now: datetime) -> bool:
    """Return whether a transition is allowed, and would change only the time of the last write."""
    changed = transition.apply(current, now)
    if changed is None:
        return False
    written = {"updated_at", "heartbeat_at"}
    before, after = (each.model_dump(mode="json", exclude=written) for each in (current, changed))
    return canonical(before) == canonical(after)
