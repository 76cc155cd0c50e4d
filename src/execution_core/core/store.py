"""The protocols of a store: eleven methods, sync or async.

A store keeps executions and contains no rules: it applies a transition if the transition's guard
matches, and returns None if it does not. The manager then finds out why.
"""

import builtins
from collections.abc import Coroutine
from typing import Any, Literal, Protocol

from .creation import NewExecution
from .log_lines import NewLogEntry
from .models import Execution, LogEntry
from .selections import BatchTransition, LogPage, Page, PruneRequest, Selection
from .transitions import Transition

Returning = Literal["execution", "status"]
"""What `update` returns: the whole execution, or its status alone."""


class Transaction(Protocol):
    """A caller's transaction: SQLAlchemy's Connection or Session, or what another store joins."""

    def rollback(self) -> None:
        """Undo everything that was written in it."""


class AsyncTransaction(Protocol):
    """`Transaction` for asyncio: SQLAlchemy's AsyncConnection or AsyncSession, for example."""

    def rollback(self) -> Coroutine[Any, Any, None]:
        """Undo everything that was written in it."""


def store_within(store: Any, transaction: Any) -> Any:
    """Return a store that runs in the caller's transaction, if the store can do that."""
    return optional_method(store, "within", "join a transaction")(transaction)


def optional_method(store: Any, name: str, action: str) -> Any:
    """Return an optional method: `optional_method(store, "within", "join a transaction")`.

    Raises NotImplementedError if the store does not have it.
    """
    method = getattr(store, name, None)
    if method is None:
        raise NotImplementedError(
            f"{type(store).__name__} cannot {action}: it has no method {name!r}"
        )
    return method


class ExecutionStore(Protocol):
    """Stores executions for a manager: `ExecutionManager(MyStore())`.

    Each method is atomic by itself. Fourteen members are optional. `within(transaction)` returns a
    store that runs in the caller's transaction; its `current_transaction()`, which is never a
    coroutine, returns an object that identifies the transaction while that is open, then None or
    another one. `close()` releases resources.
    `count_by_status(parent_id)` returns a dict with the number of children by status.
    `history(id)` returns a `HistoryEntry` for the creation and for each transition, oldest first,
    and `attempts(id)` an `AttemptRecord` for each attempt, in their order; of an unknown execution
    both return [].
    `errors` is a tuple of the exceptions that a failing call raises besides `ExecutionProblem`.
    `single_writer = True` says that a transaction which writes keeps all other writers waiting.
    `shares_connection = True` says that all calls share one connection, so that no other thread or
    task can use the store during a call. `heartbeat_many(attempts)` sends the heartbeats of many
    attempts in one call: for each `(id, attempt)`, if that attempt is running, it sets
    `heartbeat_at` and `updated_at` to now; it returns those that are running, as a set. It waits
    for no lock: it leaves out a locked execution, and returns it if its attempt is running.
    `create_many(news)` and `update_each(changes)`, with pairs of an id and a transition, do what
    `create` and `update` do, for several executions in one call, and return the answers in order;
    `update_each` gets transitions of one rule and distinct ids. `find_many(field, values)` returns
    the executions whose "id" or "idempotency_key" is one of the values, in any order.
    `find_unfinished(ids, *, children=False)` returns those of up to 1,000 ids that are live
    (pending, running, retrying), or that have a live child, as a set. Without it, each execution
    that a caller waits for is read alone.
    """

    def create(self, new: NewExecution) -> Execution | None:
        """Store and return `new.apply(now)`; None if its key is held or it has no such parent.

        None as well if `new.needs_live_parent` and the parent has finished.
        """

    def find_by_id(self, id: str) -> Execution | None:
        """Return the execution, or None."""

    def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Return the execution that holds the key, or None."""

    def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Any:  # Execution | ExecutionStatus | None, as `returning` says
        """Compare and set: store `transition.apply(found, now)` and return it.

        If `transition.rule.reads_children`, `apply` needs the statuses of its children. With
        `returning="status"`, return the status alone, so that no payload is read or sent. If
        `transition.rule.deletes_log`, delete its log as well. Return None if there is no such
        execution or the transition does not apply.
        """

    def update_many(self, batch: BatchTransition) -> builtins.list[Execution]:
        """Compare and set many: store and return `batch.apply(all, now)`, each atomically.

        Two concurrent callers never get the same execution for the same transition.
        """

    def list(self, page: Page) -> builtins.list[Execution]:
        """Return the executions of the page, in its order, at most `page.limit`."""

    def count(self, selection: Selection) -> int:
        """Return how many executions the selection includes."""

    def delete(self, id: str) -> bool:
        """Delete the execution and its log; return False if there is none.

        Its children lose their `parent_id`, its replays their `replay_of`.
        """

    def prune(self, request: PruneRequest) -> int:
        """Delete `request.apply(all, now)`, as `delete` does; return how many."""

    def log(self, new: NewLogEntry) -> LogEntry | None:
        """Store and return `new.apply(found, now)`; None if it does not apply."""

    def logs(self, page: LogPage) -> builtins.list[LogEntry]:
        """Return the log entries of the page, in its order, at most `page.limit`."""


class AsyncExecutionStore(Protocol):
    """`ExecutionStore` for asyncio: `AsyncExecutionManager(MyStore())`."""

    def create(self, new: NewExecution) -> Coroutine[Any, Any, Execution | None]:
        """Store and return `new.apply(now)`; None if its key is held or it has no such parent.

        None as well if `new.needs_live_parent` and the parent has finished.
        """

    def find_by_id(self, id: str) -> Coroutine[Any, Any, Execution | None]:
        """Return the execution, or None."""

    def find_by_idempotency_key(self, key: str) -> Coroutine[Any, Any, Execution | None]:
        """Return the execution that holds the key, or None."""

    def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Coroutine[Any, Any, Any]:  # Execution | ExecutionStatus | None, as `returning` says
        """Compare and set: store `transition.apply(found, now)` and return it.

        If `transition.rule.reads_children`, `apply` needs the statuses of its children. With
        `returning="status"`, return the status alone, so that no payload is read or sent. If
        `transition.rule.deletes_log`, delete its log as well. Return None if there is no such
        execution or the transition does not apply.
        """

    def update_many(self, batch: BatchTransition) -> Coroutine[Any, Any, builtins.list[Execution]]:
        """Compare and set many: store and return `batch.apply(all, now)`, each atomically.

        Two concurrent callers never get the same execution for the same transition.
        """

    def list(self, page: Page) -> Coroutine[Any, Any, builtins.list[Execution]]:
        """Return the executions of the page, in its order, at most `page.limit`."""

    def count(self, selection: Selection) -> Coroutine[Any, Any, int]:
        """Return how many executions the selection includes."""

    def delete(self, id: str) -> Coroutine[Any, Any, bool]:
        """Delete the execution and its log; return False if there is none.

        Its children lose their `parent_id`, its replays their `replay_of`.
        """

    def prune(self, request: PruneRequest) -> Coroutine[Any, Any, int]:
        """Delete `request.apply(all, now)`, as `delete` does; return how many."""

    def log(self, new: NewLogEntry) -> Coroutine[Any, Any, LogEntry | None]:
        """Store and return `new.apply(found, now)`; None if it does not apply."""

    def logs(self, page: LogPage) -> Coroutine[Any, Any, builtins.list[LogEntry]]:
        """Return the log entries of the page, in its order, at most `page.limit`."""
