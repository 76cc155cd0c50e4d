"""What the sync and the async store share: every method, with its one signature and docstring.

A method returns what `_ask` makes of its query: the answer, or a coroutine that returns it. The
type parameters say which.
"""

import logging
from collections.abc import Callable, Sequence
from copy import copy
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Any, Final, Generic, Literal, Self, TypeVar, cast

from sqlalchemy.exc import SQLAlchemyError

from ..core import validation
from ..core.creation import NewExecution
from ..core.errors import InvalidValue
from ..core.log_lines import NewLogEntry
from ..core.models import AttemptRecord, Execution, ExecutionStatus, HistoryEntry, LogEntry
from ..core.selections import BatchTransition, LogPage, Page, PruneRequest, Selection
from ..core.store import Returning
from ..core.transitions import Transition
from .driver.executor import Executor
from .driver.session import boot_clock
from .recovery import verify_commit
from .recovery.verify_commit import Verifier
from .schema.tables import executions
from .statements import queries
from .statements.queries import Query, Rows
from .statements.rows import FIELDS, to_attempt_record, to_execution, to_history_entry, to_log_entry

logger: Final = logging.getLogger("execution_core")
Clock = Callable[[], datetime]
Convert = Callable[[Rows], Any]
TOOK_EFFECT: Final = "The call took effect: only its answer cannot be read."

FoundT = TypeVar("FoundT")
ManyT = TypeVar("ManyT")
EntryT = TypeVar("EntryT")
EntriesT = TypeVar("EntriesT")
BoolT = TypeVar("BoolT")
CountT = TypeVar("CountT")


class StoreMethods(Generic[FoundT, ManyT, EntryT, EntriesT, BoolT, CountT]):
    """The methods of a store. Each is one statement."""

    errors = (SQLAlchemyError,)
    _bind: Any
    """An executor, or the caller's connection or session."""
    _clock: Clock | None
    _schema: str | None
    _locks_rows: bool

    @property
    def shares_connection(self) -> bool:
        """Whether all callers, or all of one thread, share one connection: in-memory SQLite."""
        return isinstance(self._bind, Executor) and self._bind.shares_connection

    @property
    def single_writer(self) -> bool:
        """Whether a transaction that writes keeps all other writers waiting: SQLite."""
        return not self._locks_rows

    def __repr__(self) -> str:
        is_own = isinstance(self._bind, Executor)
        # Without its query, which may contain a password as well.
        bind = self._bind.engine.url.set(query={}) if is_own else "a transaction"
        schema = "" if self._schema is None else f", schema {self._schema}"
        return f"<{type(self).__name__} in {bind}{schema}>"

    def create(self, new: NewExecution) -> FoundT:
        """Insert and return an execution; None if its key is held or it has no such parent."""
        query = queries.create(new, self._now())
        return cast("FoundT", self._ask(query, _one, partial(verify_commit.verify_create, new)))

    def create_many(self, news: Sequence[NewExecution]) -> Any:  # list[Execution | None]
        """Insert executions in one statement; None for those that `create` would not insert."""
        query = queries.create_many(news, self._now(), locks_rows=self._locks_rows)
        ids = [new.id for new in news]
        verify = partial(verify_commit.verify_create_many, ids)
        return self._ask(query, partial(_in_order, ids), verify)

    def find_many(self, field: Literal["id", "idempotency_key"], values: Sequence[str]) -> ManyT:
        """Select the executions with these ids or these idempotency keys, in any order."""
        query = queries.find_many(executions.c[field], values)
        return cast("ManyT", self._ask(query, _many))

    def find_by_id(self, id: str) -> FoundT:
        """Select the execution with this id, or return None."""
        return cast("FoundT", self._ask(queries.find(executions.c.id, id), _one))

    def find_by_idempotency_key(self, key: str) -> FoundT:
        """Select the execution that holds this key, or return None."""
        query = queries.find(executions.c.idempotency_key, key)
        return cast("FoundT", self._ask(query, _one))

    def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Any:  # Execution | ExecutionStatus | None
        """Apply a transition in one conditional UPDATE; return None if it does not apply."""
        token, whole = self._token(), returning == "execution"
        query = queries.update(id, transition, token, self._now(), whole=whole)
        began = boot_clock()
        verify = partial(verify_commit.verify_update, id, transition, token, began, whole=whole)
        return self._ask(query, _changed if whole else _status, verify)

    def update_many(self, batch: BatchTransition) -> ManyT:
        """Apply a transition to many executions in one conditional UPDATE."""
        token, rule = self._token(), batch.transition.rule
        query = queries.update_many(batch, token, self._now())
        verify: Verifier | None = partial(verify_commit.verify_batch, token, rule)
        if batch.root is not None:  # its tokens have no index
            verify = verify_commit.verify_unknowable
        elif rule.reads_children:  # what has been ended is ended: the next try finds the others
            verify = None
        return cast("ManyT", self._ask(query, _by_id, verify))

    def update_each(
        self, changes: Sequence[tuple[str, Transition]]
    ) -> Any:  # list[Execution | InvalidValue | None]
        """Apply transitions of one rule, each to another execution, in one conditional UPDATE.

        None stands for a transition that does not apply, InvalidValue for one that took effect but
        whose row cannot be read.
        """
        token = self._token()
        query = queries.update_each(changes, token, self._now(), locks_rows=self._locks_rows)
        verify = partial(verify_commit.verify_each, changes, token)
        return self._ask(query, partial(_in_order, [id for id, _ in changes]), verify)

    def heartbeat_many(self, attempts: Sequence[tuple[str, int]]) -> Any:  # set[tuple[str, int]]
        """Send the heartbeats of attempts in one UPDATE; return those that are running."""
        token, now = self._token(), self._now()
        query = queries.heartbeat_many(attempts, token, now, locks_rows=self._locks_rows)
        return self._ask(query, _attempts)  # does no harm if it is executed again

    def find_unfinished(self, ids: Sequence[str], *, children: bool = False) -> Any:  # set[str]
        """Select those of some ids that are live, or that have a live child."""
        return self._ask(queries.find_unfinished(ids, children=children), _ids)

    def delete(self, id: str) -> BoolT:
        """Delete an execution; return whether it existed."""
        verify = partial(verify_commit.verify_delete, id)
        return cast("BoolT", self._ask(queries.delete(id), bool, verify))

    def prune(self, request: PruneRequest) -> CountT:
        """Delete finished executions in one statement; return how many."""
        query = queries.prune(request, self._now())
        return cast("CountT", self._ask(query, len, verify_commit.verify_unknowable))

    def log(self, new: NewLogEntry) -> EntryT:
        """Insert a log entry; return None if it may not be added."""
        query = queries.log(new, self._now())
        verify = partial(verify_commit.verify_log, new)
        return cast("EntryT", self._ask(query, _entry, verify))

    def logs(self, page: LogPage) -> EntriesT:
        """Select the log entries of a page."""
        return cast("EntriesT", self._ask(queries.logs(page), _entries))

    def history(self, id: str) -> Any:  # list[HistoryEntry]
        """Select the history of an execution, oldest first."""
        return self._ask(queries.history(id), _history)

    def attempts(self, id: str) -> Any:  # list[AttemptRecord]
        """Select the attempts of an execution, in order."""
        return self._ask(queries.attempts(id), _records)

    def list(self, page: Page) -> ManyT:
        """Select the executions of a page."""
        return cast("ManyT", self._ask(queries.page(page), _many))

    def count(self, selection: Selection) -> CountT:
        """Count the executions of a selection."""
        return cast("CountT", self._ask(queries.count(selection), _number))

    def current_transaction(self) -> Any:
        """Return the transaction that is open on the caller's connection or session, or None.

        None as well for a store that does not run in a transaction of the caller's.
        """
        bind = self._bind
        if isinstance(bind, Executor):
            return None
        if callable(bind):  # a scoped session
            bind = bind()
        for attribute in ("sync_session", "sync_connection"):
            bind = getattr(bind, attribute, bind)
        transaction = bind.get_transaction()
        # After a failed flush, a session has rolled back already.
        return transaction if transaction is not None and transaction.is_active else None

    def count_by_status(self, parent_id: str) -> Any:  # dict[ExecutionStatus, int]
        """Count the children of an execution by their status."""
        return self._ask(queries.count_by_status(parent_id), _by_status)

    def _within(self, transaction: Any, types: tuple[type, ...], expected: str) -> Self:
        if not isinstance(transaction, types):
            found = type(transaction).__name__
            raise InvalidValue("transaction", f"must be {expected}, not {found}")
        store = copy(self)
        store._bind = transaction  # noqa: SLF001 - of this class
        return store

    def _ask(self, query: Query, convert: Convert, verify: Verifier | None = None) -> Any:
        """Execute a query and convert its rows; `verify` decides after a broken connection."""
        raise NotImplementedError

    def _token(self) -> str:
        """Return the token of one write, which no other write has."""
        return validation.new_id()

    def _now(self) -> datetime | None:
        """Return the time of an injected clock, or None if there is none."""
        now = self._clock and self._clock()
        if now is not None and now.tzinfo is None:
            raise InvalidValue("clock", "must return aware datetimes, such as datetime.now(UTC)")
        return now


def _one(rows: Rows) -> Execution | None:
    return to_execution(rows[0]) if rows else None


def _changed(rows: Rows) -> Execution | None:
    try:
        return _one(rows)
    except InvalidValue as problem:
        problem.add_note(TOOK_EFFECT)
        raise


def _in_order(ids: Sequence[str], rows: Rows) -> list[Execution | InvalidValue | None]:
    """Return the execution of each id; one that cannot be read must not hide the others."""
    found: dict[str, Execution | InvalidValue] = {}
    for row in rows:
        id = row[FIELDS.index("id")]
        try:
            found[id] = to_execution(row)
        except InvalidValue as problem:
            problem.add_note(TOOK_EFFECT)
            found[id] = problem
    return [found.get(id) for id in ids]


def _number(rows: Rows) -> int:
    return int(rows[0][0])


def _status(rows: Rows) -> ExecutionStatus | None:
    return ExecutionStatus(rows[0][0]) if rows else None


def _many(rows: Rows) -> list[Execution]:
    return [to_execution(row) for row in rows]


def _attempts(rows: Rows) -> set[tuple[str, int]]:
    return {(id, attempt) for id, attempt in rows}


def _ids(rows: Rows) -> set[str]:
    return {id for (id,) in rows}


def _by_id(rows: Rows) -> list[Execution]:
    """Return the executions of a batch; one that cannot be read must not hide the others."""
    found = []
    for row in rows:
        try:
            found.append(to_execution(row))
        except InvalidValue as problem:
            logger.warning("An execution was changed and is missing in the answer: %s", problem)
    return sorted(found, key=attrgetter("id"))


def _by_status(rows: Rows) -> dict[ExecutionStatus, int]:
    counted = {ExecutionStatus(status): int(count) for status, count in rows}
    return {status: counted[status] for status in ExecutionStatus if status in counted}


def _entry(rows: Rows) -> LogEntry | None:
    return to_log_entry(rows[0]) if rows else None


def _entries(rows: Rows) -> list[LogEntry]:
    return [to_log_entry(row) for row in rows]


def _history(rows: Rows) -> list[HistoryEntry]:
    return [to_history_entry(row) for row in rows]


def _records(rows: Rows) -> list[AttemptRecord]:
    return [to_attempt_record(row) for row in rows]
