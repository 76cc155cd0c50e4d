"""The verbs of a manager that decide something, as steps over a store, sync or async."""

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from ..core import transitions, validation
from ..core.creation import MAX_TRIES, NewExecution, ReplayOptions, check_same_work, new_replay
from ..core.errors import (
    ConcurrentUpdate,
    ExecutionNotFound,
    ExecutionProblem,
    InvalidStateTransition,
)
from ..core.log_lines import NewLogEntry
from ..core.models import ChildrenSummary, Execution, ExecutionStatus, LogEntry
from ..core.selections import (
    BatchTransition,
    LogPage,
    Page,
    Selection,
    check_batch,
    check_bounds,
    check_selection,
)
from ..core.state_machine import (
    FAILED,
    FINISH_WITH_CHILDREN,
    FINISHED,
    LIVE,
    RUNNING,
    TIMED_OUT,
)
from ..core.steps import Steps
from ..core.store import optional_method
from ..core.transitions import Transition
from .waiting import Waiter, schedule_of

MAX_FAILED_CHILDREN: Final = 100
"""How many failed children `children` returns."""
logger: Final = logging.getLogger("execution_core")


def apply(store: Any, id: str, transition: Transition, *, joined: bool) -> Steps[Execution]:
    """Make a transition; explain the refusal if it matches nothing."""
    id = validation.execution_id(id)
    updated = yield from update(store, id, transition, joined=joined)
    if updated is None:
        raise transitions.refusal(transition, id, (yield lambda: store.find_by_id(id)))
    if updated.status is RUNNING and transition.rule.verb == FINISH_WITH_CHILDREN.verb:
        # The last one may have finished before it could see that its parent awaits it.
        end = transitions.end_with_children()
        updated = (yield from update(store, id, end, joined=joined)) or updated
    return updated


def update(store: Any, id: str, transition: Transition, *, joined: bool) -> Steps[Execution | None]:
    """Make a transition, and end the parent if this was its last child.

    `joined` is whether the store runs in the caller's transaction.
    """
    updated: Execution | None = yield lambda: store.update(id, transition)
    if transition.rule.may_finish and not joined and updated and updated.status in FINISHED:
        yield from end_parents(store, updated.parent_id)
    return updated


def end_parents(store: Any, id: str | None) -> Steps[None]:
    """End the parent that has awaited the child which has just finished, then its parent.

    Only after the end of the child has committed: of two last children, the second one to commit
    sees both. What fails here is done by the next sweep.
    """
    end = transitions.end_with_children()
    try:
        while id is not None:
            parent: str = id
            ended: Execution | None = yield lambda: store.update(parent, end)  # noqa: B023
            id = None if ended is None else ended.parent_id
    except _errors_of(store):  # the end of the child has committed, so its caller gets the answer
        message = "Execution %s may await children that have all finished: sweep to end it"
        logger.warning(message, id, exc_info=True)


def _errors_of(store: Any) -> tuple[type[Exception], ...]:
    """Return the errors of a store: what a signal handler raises is not among them."""
    return (ExecutionProblem, *getattr(store, "errors", (Exception,)))


def sweep(store: Any, batch: BatchTransition, *, joined: bool) -> Steps[list[Execution]]:
    """Time out abandoned executions, and end those whose children have finished."""
    swept: list[Execution] = yield lambda: store.update_many(batch)
    if joined:
        return swept
    end = check_batch(transitions.end_with_children(), None, validation.MAX_PAGE)
    try:
        while (yield lambda: store.update_many(end)):  # then perhaps their parents
            pass
    except _errors_of(store):  # an error would say that nothing was swept
        message = "Executions may await children that have all finished: sweep again to end them"
        logger.warning(message, exc_info=True)
    return swept


def cancel_tree(store: Any, id: str, transition: Transition, *, joined: bool) -> Steps[int]:
    """Cancel what is live of an execution and those below it; return how many that were."""
    root = yield from get(store, id)
    cancelled, batch = 0, BatchTransition(transition, None, validation.MAX_PAGE, root.id)
    while changed := (yield lambda: store.update_many(batch)):  # children may have been added
        cancelled += len(changed)
    if cancelled and not joined:
        yield from end_parents(store, root.parent_id)
    return cancelled


def children(store: Any, id: str) -> Steps[ChildrenSummary]:
    """Count the children of an execution, and read those that failed."""
    id = (yield from get(store, id)).id
    if count := getattr(store, "count_by_status", None):
        by_status: dict[ExecutionStatus, int] = yield lambda: count(id)
    else:
        by_status = {}
        for status in ExecutionStatus:
            selection = Selection(**check_selection(parent_id=id, status=status))
            if counted := (yield lambda: store.count(selection)):  # noqa: B023 - called at once
                by_status[status] = counted
    selected = check_selection(parent_id=id, status=(FAILED, TIMED_OUT))
    page = Page(**selected, **check_bounds(MAX_FAILED_CHILDREN, None, None, oldest_first=False))
    failed = (yield lambda: store.list(page)) if {FAILED, TIMED_OUT} & by_status.keys() else []
    total = sum(by_status.values())
    finished = sum(by_status.get(status, 0) for status in FINISHED)
    return ChildrenSummary(
        total=total,
        finished=finished,
        percent=100 * finished / total if total else 100,
        by_status=by_status,
        failed=failed,
    )


def create(store: Any, new: NewExecution) -> Steps[Execution]:
    """Store a new execution, or return the one that holds its key."""
    key, parent = new.idempotency_key, new.parent_id
    for _ in range(MAX_TRIES):
        created: Execution | None = yield lambda: store.create(new)
        if created:
            return created
        if key and (found := (yield lambda: store.find_by_idempotency_key(key))):
            return check_same_work(new, found)
        if parent and (problem := parent_problem(parent, (yield lambda: store.find_by_id(parent)))):
            raise problem
        # The execution that held the key was deleted in between: the key is free now.
    conflict = ConcurrentUpdate("create", new.id)
    if key:
        conflict.add_note(
            "If this is repeated, an execution with this idempotency key exists that the role of"
            " this connection may not see: check the row-level security of the table executions."
        )
    raise conflict


def parent_problem(id: str, found: Execution | None) -> ExecutionProblem | None:
    """Return why nothing can be created below an execution, or None if it can."""
    if found is None:
        return ExecutionNotFound(id)
    if found.status in FINISHED:
        return InvalidStateTransition(id, "create a child", found.status, None, LIVE)
    return None


def replay(store: Any, id: str, options: ReplayOptions) -> Steps[Execution]:
    """Store a new execution that repeats a finished one."""
    for _ in range(MAX_TRIES):
        new = new_replay((yield from get(store, id)), options)
        created: Execution | None = yield lambda: store.create(new)  # noqa: B023 - called at once
        if created:
            return created
        # The finished execution, or its parent, was deleted in between.
    raise ConcurrentUpdate("replay", id)


def log(store: Any, new: NewLogEntry) -> Steps[LogEntry]:
    """Append an entry to a log; explain the refusal if it may not be added."""
    entry: LogEntry | None = yield lambda: store.log(new)
    if entry is None:
        found = yield lambda: store.find_by_id(new.execution_id)
        raise transitions.refusal(new.transition, new.execution_id, found)
    return entry


def logs(store: Any, page: LogPage) -> Steps[list[LogEntry]]:
    """Read a page of a log."""
    return (yield from _rows_of(store, page.execution_id, lambda: store.logs(page)))


def records(store: Any, name: str, id: str) -> Steps[list[Any]]:
    """Read the history or the attempts of an execution, by the optional method of that name."""
    id = validation.execution_id(id)
    read = optional_method(store, name, f"read the {name} of an execution")
    return (yield from _rows_of(store, id, lambda: read(id)))


def _rows_of(store: Any, id: str, read: Callable[[], Any]) -> Steps[list[Any]]:
    found: list[Any] = yield read
    if not found:
        yield from get(store, id)
    return found


def get(store: Any, id: str) -> Steps[Execution]:
    """Read one execution."""
    id = validation.execution_id(id)
    found: Execution | None = yield lambda: store.find_by_id(id)
    if found is None:
        raise ExecutionNotFound(id)
    return found


def wait(store: Any, waiter: Waiter) -> Steps[Execution]:
    """Wait until an execution has finished."""
    schedule = schedule_of(store, waiter.owner())
    while True:
        yield from schedule.wait_steps(waiter)
        is_late = monotonic() >= waiter.deadline
        execution = yield from get(store, waiter.id)
        if execution.status not in LIVE:
            return execution
        if is_late:
            message = f"Execution {waiter.id} is not finished after {waiter.seconds:g} s"
            raise TimeoutError(f"{message}: its status is {execution.status}.")
        waiter.began = monotonic()  # `retry` was faster than the read


def wait_children(store: Any, waiter: Waiter) -> Steps[ChildrenSummary]:
    """Wait until no child of an execution is live; return what `children` does."""
    schedule = schedule_of(store, waiter.owner())
    yield from schedule.wait_steps(waiter)
    if not waiter.is_over and (yield from schedule.find_steps([waiter.id], children=True)):
        message = f"Execution {waiter.id} has unfinished children after {waiter.seconds:g} s"
        raise TimeoutError(f"{message}: at least one is pending, running or retrying.")
    return (yield from children(store, waiter.id))


def delete(store: Any, id: str) -> Steps[None]:
    """Delete an execution."""
    id = validation.execution_id(id)
    if not (yield lambda: store.delete(id)):
        raise ExecutionNotFound(id)


def close(store: Any) -> Steps[None]:
    """Close a store that holds connections."""
    if method := getattr(store, "close", None):
        yield method
