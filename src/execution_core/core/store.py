"""What a manager needs from a store: eleven methods, sync or async.

A store keeps executions and never judges: it makes a transition when the transition's guard
matches, and answers None when it does not. The manager finds out why.
"""

import builtins
from typing import Any, Literal, Protocol

from .creation import NewExecution
from .log_lines import NewLogEntry
from .models import Execution, LogEntry
from .selections import BatchTransition, Page, PruneRequest
from .transitions import Transition

Returning = Literal["execution", "status"]
"""What `update` returns: the whole execution, or its status alone."""


class Transaction(Protocol):
    """A caller's transaction: SQLAlchemy's Connection or Session, or what another store joins."""

    def rollback(self) -> None:
        """Undo everything that was written in it."""
        ...


class AsyncTransaction(Protocol):
    """`Transaction` for asyncio: SQLAlchemy's AsyncConnection or AsyncSession, for example."""

    async def rollback(self) -> None:
        """Undo everything that was written in it."""
        ...


def store_within(store: Any, transaction: Any) -> Any:
    """Return a store in the caller's transaction.

    Raises:
        NotImplementedError: the store cannot join any.
    """
    join = getattr(store, "within", None)
    if join is None:
        raise NotImplementedError(f"{type(store).__name__} cannot join a transaction")
    return join(transaction)


class ExecutionStore(Protocol):
    """Where executions are kept: `ExecutionManager(MyStore())`.

    Each method is atomic by itself. A store that can take part in a caller's transaction also has
    `within(transaction)`, which returns a store that does; one that holds resources has `close()`;
    one that no other thread or task can use meanwhile has `shares_connection = True`.
    """

    def create(self, creation: NewExecution) -> Execution | None:
        """Store `creation.apply(now)`; None when its key is taken or its parent is missing."""
        ...

    def find_by_id(self, id: str) -> Execution | None:
        """Return the execution, or None."""
        ...

    def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Return the execution that holds the key, or None."""
        ...

    def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Any:  # Execution | ExecutionStatus | None, as `returning` says
        """Compare and set: store `transition.apply(found, now)` and return it.

        With `returning="status"`, return its status alone, so that no payload is read or sent.
        None when there is no such execution or the transition does not apply; nothing changed.
        """
        ...

    def update_many(self, batch: BatchTransition) -> builtins.list[Execution]:
        """Compare and set many: store and return `batch.apply(all, now)`, each atomically.

        Two callers at once never get the same execution for the same move.
        """
        ...

    def list(self, page: Page) -> builtins.list[Execution]:
        """Return the executions that the page includes, newest id first, `page.limit` at most."""
        ...

    def delete(self, id: str) -> bool:
        """Remove the execution and its log; its children lose their parent, its replays the link.

        False when there is none.
        """
        ...

    def prune(self, pruning: PruneRequest) -> int:
        """Remove `pruning.apply(all, now)`, as `delete` does; return how many."""
        ...

    def log(self, line: NewLogEntry) -> LogEntry | None:
        """Append and return `line.apply(found, now)`; None when it does not apply."""
        ...

    def logs(self, id: str, limit: int, before: str | None) -> builtins.list[LogEntry]:
        """Return an execution's log, newest id first; only ids below `before`, if any."""
        ...


class AsyncExecutionStore(Protocol):
    """`ExecutionStore` for asyncio: `AsyncExecutionManager(MyStore())`."""

    async def create(self, creation: NewExecution) -> Execution | None:
        """Store `creation.apply(now)`; None when its key is taken or its parent is missing."""
        ...

    async def find_by_id(self, id: str) -> Execution | None:
        """Return the execution, or None."""
        ...

    async def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Return the execution that holds the key, or None."""
        ...

    async def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Any:  # Execution | ExecutionStatus | None, as `returning` says
        """Compare and set: store `transition.apply(found, now)` and return it.

        With `returning="status"`, return its status alone, so that no payload is read or sent.
        None when there is no such execution or the transition does not apply; nothing changed.
        """
        ...

    async def update_many(self, batch: BatchTransition) -> builtins.list[Execution]:
        """Compare and set many: store and return `batch.apply(all, now)`, each atomically.

        Two callers at once never get the same execution for the same move.
        """
        ...

    async def list(self, page: Page) -> builtins.list[Execution]:
        """Return the executions that the page includes, newest id first, `page.limit` at most."""
        ...

    async def delete(self, id: str) -> bool:
        """Remove the execution and its log; its children lose their parent, its replays the link.

        False when there is none.
        """
        ...

    async def prune(self, pruning: PruneRequest) -> int:
        """Remove `pruning.apply(all, now)`, as `delete` does; return how many."""
        ...

    async def log(self, line: NewLogEntry) -> LogEntry | None:
        """Append and return `line.apply(found, now)`; None when it does not apply."""
        ...

    async def logs(self, id: str, limit: int, before: str | None) -> builtins.list[LogEntry]:
        """Return an execution's log, newest id first; only ids below `before`, if any."""
        ...
