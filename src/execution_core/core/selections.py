"""Selections of executions: a page of a list, a batch transition, a prune request."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from operator import attrgetter
from typing import Any, TypedDict

from . import validation
from .errors import InvalidValue
from .models import Execution, ExecutionStatus, LogEntry
from .state_machine import FINISHED, LIVE
from .transitions import Transition

Statuses = ExecutionStatus | str | Iterable[ExecutionStatus | str] | None
"""One or several statuses, or None for any."""
Window = tuple[datetime | None, datetime | None]
"""From a time on, and before a time; None is no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which executions to count: those that meet all conditions; None is no condition."""

    statuses: tuple[ExecutionStatus, ...] | None
    types: tuple[str, ...] | None
    parent_id: str | None
    replay_of: str | None
    worker: str | None
    created: Window
    finished: Window

    def includes(self, execution: Execution) -> bool:
        """Return whether an execution meets the conditions."""
        equal = ("parent_id", "replay_of", "worker")
        return (
            (self.statuses is None or execution.status in self.statuses)
            and (self.types is None or execution.type in self.types)
            and all(getattr(self, f) in (None, getattr(execution, f)) for f in equal)
            and _is_within(execution.created_at, self.created)
            and _is_within(execution.completed_at, self.finished)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Selection):
    """Which executions to list, newest id first, or oldest first."""

    limit: int
    before: str | None
    """List only ids below this one."""
    after: str | None
    """List only ids above this one."""
    oldest_first: bool

    def includes(self, execution: Execution) -> bool:
        """Return whether an execution meets the conditions; the limit is not one of them."""
        return Selection.includes(self, execution) and _is_between(execution.id, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """Which entries of a log to read, newest id first, or oldest first."""

    execution_id: str
    limit: int
    before: str | None
    after: str | None
    oldest_first: bool

    def includes(self, entry: LogEntry) -> bool:
        """Return whether an entry meets the conditions; the limit is not one of them."""
        return entry.execution_id == self.execution_id and _is_between(entry.id, self)


def _is_between(id: str, page: Page | LogPage) -> bool:
    return (page.before is None or id < page.before) and (page.after is None or id > page.after)


def _is_within(time: datetime | None, window: Window) -> bool:
    since, until = window
    if time is None:
        return since is None and until is None
    return (since is None or time >= since) and (until is None or time < until)


class Conditions(TypedDict, total=False):
    """The conditions of `list` and `count`, as a caller gives them; None is no condition."""

    status: Statuses
    type: str | Iterable[str] | None
    parent_id: str | None
    replay_of: str | None
    worker: str | None
    created_since: datetime | None
    created_until: datetime | None
    finished_since: datetime | None
    finished_until: datetime | None


def check_selection(
    *,
    status: object = None,
    type: str | Iterable[str] | None = None,
    parent_id: str | None = None,
    replay_of: str | None = None,
    worker: str | None = None,
    created_since: datetime | None = None,
    created_until: datetime | None = None,
    finished_since: datetime | None = None,
    finished_until: datetime | None = None,
) -> dict[str, Any]:
    """Check the conditions of `list` and `count`; return the fields of a `Selection`."""
    return {
        "statuses": None if status is None else validation.statuses(status),
        "types": None if type is None else validation.names("type", type),
        "parent_id": None if parent_id is None else validation.execution_id(parent_id),
        "replay_of": None if replay_of is None else validation.execution_id(replay_of),
        "worker": None if worker is None else validation.name("worker", worker),
        "created": (
            validation.time("created_since", created_since),
            validation.time("created_until", created_until),
        ),
        "finished": (
            validation.time("finished_since", finished_since),
            validation.time("finished_until", finished_until),
        ),
    }


def check_bounds(
    limit: int, before: str | None, after: str | None, oldest_first: bool
) -> dict[str, Any]:
    """Check the bounds of a page; return them as fields of a `Page` or a `LogPage`."""
    return {
        "limit": validation.integer("limit", limit, 1, validation.MAX_PAGE),
        "before": None if before is None else validation.cursor("before", before),
        "after": None if after is None else validation.cursor("after", after),
        "oldest_first": validation.flag("oldest_first", oldest_first),
    }


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
    root: str | None = None
    """Only this execution, its children, their children, and so on."""

    def apply(self, executions: Iterable[Execution], now: datetime) -> list[Execution]:
        """Return the changed executions by id, of all executions.

        For stores without SQL, under their own lock: `changed = batch.apply(all, now)`.
        """
        everything = list(executions)
        children = defaultdict[str | None, list[Execution]](list)
        for each in everything:
            children[each.parent_id].append(each)
        tree = {self.root}
        below = [self.root]
        while self.root is not None and below:
            new = {each.id for each in children[below.pop()]} - tree
            tree |= new
            below += new
        candidates = [
            each
            for each in everything
            if self.type in (None, each.type) and (self.root is None or each.id in tree)
        ]
        candidates.sort(key=lambda each: (each.due_at or each.created_at, each.id))
        changed = filter(
            None,
            (
                self.transition.apply(each, now, [child.status for child in children[each.id]])
                for each in candidates
            ),
        )
        return sorted(islice(changed, self.limit), key=attrgetter("id"))


def check_batch(transition: Transition, type: str | None, limit: int) -> BatchTransition:
    """Check the arguments of `claim` or `sweep` and return them as a `BatchTransition`."""
    return BatchTransition(
        transition=transition,
        type=None if type is None else validation.name("type", type),
        limit=validation.integer("limit", limit, 1, validation.MAX_PAGE),
    )
