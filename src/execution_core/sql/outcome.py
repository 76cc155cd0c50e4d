"""What became of a write whose answer was lost with its connection: pure decisions.

First the server process that was at it is ended, lest it carry the write out later. Then the
database is asked: for the id of what was created, or for the token that each write leaves in its
row, and each move in the history as well.

An inquiry yields what to ask, and is sent the rows or thrown the error. What it returns is what the
write would have answered, or None when nothing of it is there: then it is made again.
"""

import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..creation import TRIES, Creation
from ..errors import ConcurrentUpdate, ConnectionLost, ExecutionProblem
from ..execution import Execution
from ..logs import Line
from ..store import Batch
from ..transitions import Transition
from ..values import Entry
from . import statements, traces
from .rows import execution
from .schema import executions
from .statements import Query

Answer = TypeVar("Answer")
Rows = Sequence[Sequence[Any]]
Inquiry = Generator[Query, Rows, Answer]
Inquire = Callable[["Lost"], Inquiry[Rows | None]]

DRIFT: Final = 1.001
"""How much faster the database's clock may go than this machine's."""
CONFLICTS: Final = ("40001", "40P01")  # serialization failure, deadlock
UNDEFINED: Final = ("42P01", "42703", "42883")  # table, column, function


class Lost(Exception):  # noqa: N818 - the error is SQLAlchemy's
    """A connection was lost during a statement.

    Args:
        error: SQLAlchemy's error.
        backend: the number of the server process that was at it; None without a server.
        is_own: tells whether a number is that of a connection's server process, as it is unless
            there is a pooler in between.
    """

    def __init__(
        self, error: DBAPIError, backend: int | None, is_own: Callable[[int], bool]
    ) -> None:
        super().__init__(error)
        self.error = error
        self.backend = backend
        self.is_own = is_own


class Unknown(Exception):  # noqa: N818 - the answer to a question
    """There is no way to tell."""


def known(error: Lost | DBAPIError, query: Query, inquire: Inquire) -> Inquiry[Rows]:
    """Find out what a query has done that ended in an error outside any transaction.

    It is made again where it has done nothing and may succeed, a bounded number of times.

    Raises:
        ConnectionLost: the connection was lost time after time. Nothing was changed.
        ConcurrentUpdate: other transactions came between time after time. Nothing was changed.
        DBAPIError: the error itself, where it is neither, or where there is no way to tell.
    """
    for left in reversed(range(TRIES)):
        problem: ExecutionProblem | None
        if isinstance(error, Lost):
            try:
                if (found := (yield from inquire(error))) is not None:
                    return found
            except (Unknown, Lost, SQLAlchemyError):
                raise error.error from error.error.__cause__
            error, problem = error.error, ConnectionLost(query.verb, query.execution_id)
        else:
            problem = conflict(error, query)
        if problem is None:
            raise advised(error)
        if not left:
            raise problem from error
        try:
            return (yield query)
        except (Lost, DBAPIError) as another:
            error = another
    raise AssertionError


def conflict(error: DBAPIError, query: Query) -> ConcurrentUpdate | None:
    """Return what an error means that another transaction caused; None for any other error."""
    driver: Any = error.orig
    if getattr(driver, "sqlstate", None) in CONFLICTS or (
        getattr(driver, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT
    ):
        return ConcurrentUpdate(query.verb, query.execution_id)
    return None


def advised(error: DBAPIError) -> DBAPIError:
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


def of_read(lost: Lost) -> Inquiry[Rows | None]:  # noqa: ARG001
    """Nothing was written: read again."""
    return None
    yield


def of_prune(lost: Lost) -> Inquiry[Rows | None]:
    """What was deleted has left no trace."""
    raise Unknown from lost
    yield


def of_create(lost: Lost, creation: Creation) -> Inquiry[Rows | None]:
    """Its id was made for it alone."""
    yield from _ended(lost)
    return (yield statements.find(executions.c.id, creation.id)) or None


def of_log(lost: Lost, line: Line) -> Inquiry[Rows | None]:
    """Its id was made for it alone."""
    yield from _ended(lost)
    return (yield traces.logged(line.execution_id, line.id)) or None


def of_delete(lost: Lost, id: str) -> Inquiry[Rows | None]:
    """It is gone, whoever deleted it."""
    yield from _ended(lost)
    return None if (yield statements.find(executions.c.id, id)) else [(id,)]


def of_change(
    lost: Lost, id: str, transition: Transition, token: str, *, whole: bool, began: float
) -> Inquiry[Rows | None]:
    """The token is in the row, or, when somebody has moved it on since, in the history.

    Progress and checkpoints are in no history: they have been set if they are as they were to be.
    If not, and the row was written since the call began, nobody can tell whether that was before or
    after. What was deleted has no row to answer.
    """
    yield from _ended(lost)
    found = yield traces.written(id, token)
    if not found:
        return []
    row, made, at = traces.as_written(found[0], token)
    current = execution(row)
    if not (made or _stands(transition, current)):
        # By the database's clock alone; and the time of a row never goes back.
        since = at - timedelta(seconds=DRIFT * (time.monotonic() - began))
        if current.updated_at >= since and _leaves_no_trace(transition):
            raise Unknown
        return None
    return [row if whole else traces.status_alone(row)]


def of_batch(lost: Lost, batch: Batch, token: str) -> Inquiry[Rows | None]:
    """Those that have the token still; what somebody has moved on since is no longer a caller's."""
    yield from _ended(lost)
    targets = {move.target for move in batch.transition.rule.moves}
    return (yield traces.written_together(targets, token)) or None


def _ended(lost: Lost) -> Inquiry[None]:
    """Make sure that a server process that nobody talks to any more is at nothing."""
    if lost.backend is None:
        return
    for _ in range(2):
        ((own, ended),) = yield traces.end_backend(lost.backend)
        if not lost.is_own(own):
            break
        if ended is not False:  # which also says that it was just about to end by itself
            return
    raise Unknown


def _leaves_no_trace(transition: Transition) -> bool:
    """Tell whether it sets something without a move: a heartbeat may as well be made again."""
    return transition.given.keys() & {"progress", "checkpoints"} != set()


def _stands(transition: Transition, found: Execution) -> bool:
    """Tell whether what a transition sets without a move is so."""
    progress, entry = (transition.given.get(name) for name in ("progress", "checkpoints"))
    if progress is not None and found.progress != progress:
        return False
    if isinstance(entry, Entry):
        return bool(found.checkpoints.get(entry.key, ...) == entry.value.value)
    return progress is not None
