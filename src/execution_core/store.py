"""What a manager needs from a store: eleven methods, sync or async.

A store keeps executions and never judges: it makes a transition when the transition's guard
matches, and answers None when it does not. The manager finds out why.
"""

import builtins
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from operator import attrgetter
from typing import Any, Protocol

from . import values
from .creation import Creation
from .errors import InvalidValue
from .execution import Execution, ExecutionStatus, LogEntry
from .logs import Line
from .transitions import LIVE, OVER, Transition, due_at


@dataclass(frozen=True, slots=True)
class Page:
    """Which executions to list: all conditions hold at once, None asks for nothing."""

    statuses: tuple[ExecutionStatus, ...] | None
    type: str | None
    parent_id: str | None
    limit: int
    before: str | None
    """Only ids below this one."""

    def includes(self, execution: Execution) -> bool:
        """Tell whether an execution belongs on the page, the limit aside."""
        return (
            (self.statuses is None or execution.status in self.statuses)
            and self.type in (None, execution.type)
            and self.parent_id in (None, execution.parent_id)
            and (self.before is None or execution.id < self.before)
        )


def page(
    status: object, type: str | None, parent_id: str | None, limit: int, before: str | None
) -> Page:
    """Check what a caller asks to list."""
    return Page(
        statuses=None if status is None else values.statuses(status),
        type=None if type is None else values.name("type", type),
        parent_id=None if parent_id is None else values.execution_id(parent_id),
        limit=values.integer("limit", limit, 1, values.MAX_PAGE),
        before=None if before is None else values.execution_id(before),
    )


@dataclass(frozen=True, slots=True)
class Pruning:
    """Which executions to delete: `limit` of those that have been over for long, oldest first."""

    statuses: tuple[ExecutionStatus, ...]
    type: str | None
    older_than: timedelta
    keys_older_than: timedelta
    """The same for those with an idempotency key."""
    limit: int

    def apply(self, executions: Iterable[Execution], now: datetime) -> list[Execution]:
        """Return those that are to be deleted, of all there are.

        Of those that came to rest at the same time a limit may take any.

        What a store without SQL does under its own lock: `gone = pruning.apply(all, now)`.
        """
        everyone = list(executions)
        needed = {each.parent_id for each in everyone if each.status in LIVE}
        rested = [(each.completed_at, each) for each in everyone if each.completed_at is not None]
        rested.sort(key=lambda pair: (pair[0], pair[1].id))
        gone = (
            each
            for completed_at, each in rested
            if each.status in self.statuses
            and self.type in (None, each.type)
            and completed_at
            <= now - (self.keys_older_than if each.idempotency_key else self.older_than)
            and each.id not in needed
        )
        return list(islice(gone, self.limit))


def pruning(
    older_than: timedelta,
    statuses: object,
    type: str | None,
    keys_older_than: timedelta | None,
    limit: int,
) -> Pruning:
    """Check which executions a caller asks to delete."""
    age = values.delay("older_than", older_than)
    chosen = OVER if statuses is None else values.statuses(statuses, "statuses")
    if live := [status for status in chosen if status in LIVE]:
        raise InvalidValue("statuses", f"must be over, and {live[0]} is not: {', '.join(OVER)}")
    return Pruning(
        statuses=chosen,
        type=None if type is None else values.name("type", type),
        older_than=age,
        keys_older_than=age
        if keys_older_than is None
        else values.delay("keys_older_than", keys_older_than),
        limit=values.integer("limit", limit, 1, values.MAX_PAGE),
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """One transition for many executions: for `limit` of those that allow it.

    Of what waits, those that have been due longest; of what runs, any.
    """

    transition: Transition
    type: str | None
    limit: int

    def apply(self, executions: Iterable[Execution], now: datetime) -> list[Execution]:
        """Return those that it moves, as they stand afterwards, by id.

        What a store without SQL does under its own lock: `moved = batch.apply(all, now)`.
        """
        ours = [each for each in executions if self.type in (None, each.type)]
        ours.sort(key=lambda each: (due_at(each), each.id))
        moved = filter(None, (self.transition.apply(each, now) for each in ours))
        return sorted(islice(moved, self.limit), key=attrgetter("id"))


def batch(transition: Transition, type: str | None, limit: int) -> Batch:
    """Check for which executions a caller asks to make a transition."""
    return Batch(
        transition=transition,
        type=None if type is None else values.name("type", type),
        limit=values.integer("limit", limit, 1, values.MAX_PAGE),
    )


def joined(store: Any, transaction: Any) -> Any:
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

    def create(self, creation: Creation) -> Execution | None:
        """Store `creation.apply(now)`; None when its key is taken or its parent is missing."""
        ...

    def find_by_id(self, id: str) -> Execution | None:
        """Return the execution, or None."""
        ...

    def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Return the execution that holds the key, or None."""
        ...

    def update(self, id: str, transition: Transition) -> Execution | None:
        """Compare and set: store and return `transition.apply(found, now)`.

        None when there is no such execution or the transition does not apply; nothing changed.
        """
        ...

    def write(self, id: str, transition: Transition) -> ExecutionStatus | None:
        """Do the same, and return the status alone: a large payload stays where it is."""
        ...

    def update_many(self, batch: Batch) -> builtins.list[Execution]:
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

    def prune(self, pruning: Pruning) -> int:
        """Remove `pruning.apply(all, now)`, as `delete` does; return how many."""
        ...

    def log(self, line: Line) -> LogEntry | None:
        """Append and return `line.apply(found, now)`; None when it does not apply."""
        ...

    def logs(self, id: str, limit: int, before: str | None) -> builtins.list[LogEntry]:
        """Return an execution's log, newest id first; only ids below `before`, if any."""
        ...


class AsyncExecutionStore(Protocol):
    """`ExecutionStore` for asyncio: `AsyncExecutionManager(MyStore())`."""

    async def create(self, creation: Creation) -> Execution | None:
        """Store `creation.apply(now)`; None when its key is taken or its parent is missing."""
        ...

    async def find_by_id(self, id: str) -> Execution | None:
        """Return the execution, or None."""
        ...

    async def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Return the execution that holds the key, or None."""
        ...

    async def update(self, id: str, transition: Transition) -> Execution | None:
        """Compare and set: store and return `transition.apply(found, now)`, or None."""
        ...

    async def write(self, id: str, transition: Transition) -> ExecutionStatus | None:
        """Do the same, and return the status alone: a large payload stays where it is."""
        ...

    async def update_many(self, batch: Batch) -> builtins.list[Execution]:
        """Compare and set many: store and return `batch.apply(all, now)`, each atomically."""
        ...

    async def list(self, page: Page) -> builtins.list[Execution]:
        """Return the executions that the page includes, newest id first, `page.limit` at most."""
        ...

    async def delete(self, id: str) -> bool:
        """Remove the execution and its log; its children and replays lose the link. Or False."""
        ...

    async def prune(self, pruning: Pruning) -> int:
        """Remove `pruning.apply(all, now)`, as `delete` does; return how many."""
        ...

    async def log(self, line: Line) -> LogEntry | None:
        """Append and return `line.apply(found, now)`; None when it does not apply."""
        ...

    async def logs(self, id: str, limit: int, before: str | None) -> builtins.list[LogEntry]:
        """Return an execution's log, newest id first; only ids below `before`, if any."""
        ...
