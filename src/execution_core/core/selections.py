"""Selections of executions: a page of a list, a batch transition, a prune request."""

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
    """Which executions to list: those that meet all conditions; None is no condition."""

    statuses: tuple[ExecutionStatus, ...] | None
    type: str | None
    parent_id: str | None
    limit: int
    before: str | None
    """List only ids below this one."""

    def includes(self, execution: Execution) -> bool:
        """Return whether an execution meets the conditions; the limit is not one of them."""
        return (
            (self.statuses is None or execution.status in self.statuses)
            and self.type in (None, execution.type)
            and self.parent_id in (None, execution.parent_id)
            and (self.before is None or execution.id < self.before)
        )


def check_page(
    status: object, type: str | None, parent_id: str | None, limit: int, before: str | None
) -> Page:
    """Check the arguments of `list` and return them as a `Page`."""
    return Page(
        statuses=None if status is None else validation.statuses(status),
        type=None if type is None else validation.name("type", type),
        parent_id=None if parent_id is None else validation.execution_id(parent_id),
        limit=validation.integer("limit", limit, 1, validation.MAX_PAGE),
        before=None if before is None else validation.cursor("before", before),
    )


@dataclass(frozen=True, slots=True)
class PruneRequest:
    """Which executions to delete: those that finished long ago, oldest first, up to `limit`."""

    statuses: tuple[ExecutionStatus, ...]
    type: str | None
    older_than: timedelta
    keys_older_than: timedelta
    """The age for executions with an idempotency key."""
    limit: int

    def apply(self, executions: Iterable[Execution], now: datetime) -> list[Execution]:
        """Return the executions to delete, of all executions.

        For stores without SQL, under their own lock: `expired = request.apply(all, now)`. A store
        may break ties of the finishing time in any order.
        """
        candidates = list(executions)
        parents = {each.id: each.parent_id for each in candidates}
        in_use = set[str | None]()
        for each in candidates:
            parent = each.parent_id if each.status in LIVE else None
            while parent is not None and parent not in in_use:
                in_use.add(parent)
                parent = parents.get(parent)
        finished = [(each.completed_at, each) for each in candidates if each.completed_at]
        finished.sort(key=lambda pair: (pair[0], pair[1].id))
        expired = (
            each
            for completed_at, each in finished
            if each.status in self.statuses
            and self.type in (None, each.type)
            and completed_at
            <= now - (self.keys_older_than if each.idempotency_key else self.older_than)
            and each.id not in in_use
        )
        return list(islice(expired, self.limit))


def check_prune_request(
    older_than: timedelta,
    status: object,
    type: str | None,
    keys_older_than: timedelta | None,
    limit: int,
) -> PruneRequest:
    """Check the arguments of `prune` and return them as a `PruneRequest`."""
    age = validation.delay("older_than", older_than)
    chosen = FINISHED if status is None else validation.statuses(status)
    if live := [status for status in chosen if status in LIVE]:
        raise InvalidValue(
            "status", f"must be one or several of {', '.join(FINISHED)}, not {live[0]}"
        )
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
    """One transition for up to `limit` executions that allow it.

    Of waiting executions, those with the earliest due time first; of running ones, any.
    """

    transition: Transition
    type: str | None
    limit: int

    def apply(self, executions: Iterable[Execution], now: datetime) -> list[Execution]:
        """Return the changed executions by id, of all executions.

        For stores without SQL, under their own lock: `changed = batch.apply(all, now)`.
        """
        candidates = [each for each in executions if self.type in (None, each.type)]
        candidates.sort(key=lambda each: (each.due_at or each.created_at, each.id))
        changed = filter(None, (self.transition.apply(each, now) for each in candidates))
        return sorted(islice(changed, self.limit), key=attrgetter("id"))


def check_batch(transition: Transition, type: str | None, limit: int) -> BatchTransition:
    """Check the arguments of `claim` or `sweep` and return them as a `BatchTransition`."""
    return BatchTransition(
        transition=transition,
        type=None if type is None else validation.name("type", type),
        limit=validation.integer("limit", limit, 1, validation.MAX_PAGE),
    )
