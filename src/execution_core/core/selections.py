"""Which executions a call is for: a page of a list, a batch, or what to prune."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from operator import attrgetter

from . import validation
from .errors import InvalidValue
from .models import Execution, ExecutionStatus
from .state_machine import FINISHED, LIVE
from .transitions import Transition


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


def check_page(
    status: object, type: str | None, parent_id: str | None, limit: int, before: str | None
) -> Page:
    """Check what a caller asks to list."""
    return Page(
        statuses=None if status is None else validation.statuses(status),
        type=None if type is None else validation.name("type", type),
        parent_id=None if parent_id is None else validation.execution_id(parent_id),
        limit=validation.integer("limit", limit, 1, validation.MAX_PAGE),
        before=None if before is None else validation.cursor("before", before),
    )


@dataclass(frozen=True, slots=True)
class PruneRequest:
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


def check_prune_request(
    older_than: timedelta,
    status: object,
    type: str | None,
    keys_older_than: timedelta | None,
    limit: int,
) -> PruneRequest:
    """Check which executions a caller asks to delete."""
    age = validation.delay("older_than", older_than)
    chosen = FINISHED if status is None else validation.statuses(status)
    if live := [status for status in chosen if status in LIVE]:
        raise InvalidValue("status", f"must be over, and {live[0]} is not: {', '.join(FINISHED)}")
    return PruneRequest(
        statuses=chosen,
        type=None if type is None else validation.name("type", type),
        older_than=age,
        keys_older_than=age
        if keys_older_than is None
        else validation.delay("keys_older_than", keys_older_than),
        limit=validation.integer("limit", limit, 1, validation.MAX_PAGE),
    )


@dataclass(frozen=True, slots=True)
class BatchTransition:
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
        ours.sort(key=lambda each: (each.due_at or each.created_at, each.id))
        moved = filter(None, (self.transition.apply(each, now) for each in ours))
        return sorted(islice(moved, self.limit), key=attrgetter("id"))


def check_batch(transition: Transition, type: str | None, limit: int) -> BatchTransition:
    """Check for which executions a caller asks to make a transition."""
    return BatchTransition(
        transition=transition,
        type=None if type is None else validation.name("type", type),
        limit=validation.integer("limit", limit, 1, validation.MAX_PAGE),
    )
