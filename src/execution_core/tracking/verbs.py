"""The verbs of a manager that decide something, as steps over a store, sync or async."""

from typing import Any

from ..core import transitions, validation
from ..core.creation import MAX_TRIES, NewExecution, ReplayOptions, check_same_work, new_replay
from ..core.errors import ConcurrentUpdate, ExecutionNotFound
from ..core.log_lines import NewLogEntry
from ..core.models import Execution, LogEntry
from ..core.selections import LogPage
from ..core.steps import Steps
from ..core.transitions import Transition


def apply(store: Any, id: str, transition: Transition) -> Steps[Execution]:
    """Make a transition; explain the refusal if it matches nothing."""
    id = validation.execution_id(id)
    updated: Execution | None = yield lambda: store.update(id, transition)
    if updated:
        return updated
    raise transitions.refusal(transition, id, (yield lambda: store.find_by_id(id)))


def create(store: Any, new: NewExecution) -> Steps[Execution]:
    """Store a new execution, or return the one that holds its key."""
    key, parent = new.idempotency_key, new.parent_id
    for _ in range(MAX_TRIES):
        created: Execution | None = yield lambda: store.create(new)
        if created:
            return created
        if key and (found := (yield lambda: store.find_by_idempotency_key(key))):
            return check_same_work(new, found)
        if parent and not (yield lambda: store.find_by_id(parent)):
            raise ExecutionNotFound(parent)
        # The execution that held the key was deleted in between: the key is free now.
    conflict = ConcurrentUpdate("create", new.id)
    if key:
        conflict.add_note(
            "If this is repeated, an execution with this idempotency key exists that the role of"
            " this connection may not see: check the row-level security of the table executions."
        )
    raise conflict


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
    found: list[LogEntry] = yield lambda: store.logs(page)
    if not found:
        yield from get(store, page.execution_id)
    return found


def get(store: Any, id: str) -> Steps[Execution]:
    """Read one execution."""
    id = validation.execution_id(id)
    found: Execution | None = yield lambda: store.find_by_id(id)
    if found is None:
        raise ExecutionNotFound(id)
    return found


def delete(store: Any, id: str) -> Steps[None]:
    """Delete an execution."""
    id = validation.execution_id(id)
    if not (yield lambda: store.delete(id)):
        raise ExecutionNotFound(id)


def close(store: Any) -> Steps[None]:
    """Close a store that holds connections."""
    if method := getattr(store, "close", None):
        yield method
