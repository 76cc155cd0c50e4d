"""The verbs of a manager as steps over a store, sync or async.

Arguments are checked in the steps: a coroutine raises when it is awaited, not when it is made.
"""

from collections.abc import Callable
from typing import Any

from ..core import transitions, validation
from ..core.creation import MAX_TRIES, check_same_work, new_execution, new_replay
from ..core.errors import ConcurrentUpdate, ExecutionNotFound
from ..core.log_lines import check_log_page, new_log_entry
from ..core.models import Execution, LogEntry
from ..core.selections import check_batch, check_page, check_prune_request
from ..core.steps import Steps
from ..core.transitions import Transition


def apply(store: Any, id: str, build: Callable[..., Transition], *args: Any) -> Steps[Execution]:
    """Build a transition and make it; explain the refusal if it matches nothing."""
    transition = build(*args)
    id = validation.execution_id(id)
    updated: Execution | None = yield lambda: store.update(id, transition)
    if updated:
        return updated
    return transitions.resolve_no_match(transition, id, (yield lambda: store.find_by_id(id)))


def create(store: Any, type: str, payload: Any, **options: Any) -> Steps[Execution]:
    """Store a new execution, or return the one that holds its key."""
    new = new_execution(type, payload, **options)
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
    raise ConcurrentUpdate("create", new.id)


def replay(store: Any, id: str, payload: object, max_bytes: int) -> Steps[Execution]:
    """Store a new execution that repeats a finished one."""
    for _ in range(MAX_TRIES):
        new = new_replay((yield from get(store, id)), payload, max_bytes)
        created: Execution | None = yield lambda: store.create(new)  # noqa: B023 - called at once
        if created:
            return created
        # The finished execution, or its parent, was deleted in between.
    raise ConcurrentUpdate("replay", id)


def update_many(
    store: Any, build: Callable[[Any], Transition], argument: Any, type: str | None, limit: int
) -> Steps[list[Execution]]:
    """Make a transition for several executions."""
    batch = check_batch(build(argument), type, limit)
    updated: list[Execution] = yield lambda: store.update_many(batch)
    return updated


def log(store: Any, *args: Any, **options: Any) -> Steps[LogEntry]:
    """Append an entry to a log; explain the refusal if it may not be added."""
    new = new_log_entry(*args, **options)
    entry: LogEntry | None = yield lambda: store.log(new)
    if entry is None:
        found = yield lambda: store.find_by_id(new.execution_id)
        raise transitions.refusal(new.transition, new.execution_id, found)
    return entry


def logs(store: Any, id: str, limit: int, before: str | None) -> Steps[list[LogEntry]]:
    """Read a page of a log."""
    page = check_log_page(id, limit, before)
    found: list[LogEntry] = yield lambda: store.logs(*page)
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


def find_by_idempotency_key(store: Any, key: str) -> Steps[Execution | None]:
    """Read the execution that holds a key."""
    key = validation.name("key", key)
    found: Execution | None = yield lambda: store.find_by_idempotency_key(key)
    return found


def list_page(store: Any, *args: Any) -> Steps[list[Execution]]:
    """Read a page of executions."""
    page = check_page(*args)
    found: list[Execution] = yield lambda: store.list(page)
    return found


def delete(store: Any, id: str) -> Steps[None]:
    """Delete an execution."""
    id = validation.execution_id(id)
    if not (yield lambda: store.delete(id)):
        raise ExecutionNotFound(id)


def prune(store: Any, *args: Any) -> Steps[int]:
    """Delete finished executions."""
    request = check_prune_request(*args)
    deleted: int = yield lambda: store.prune(request)
    return deleted


def close(store: Any) -> Steps[None]:
    """Close a store that holds connections."""
    if method := getattr(store, "close", None):
        yield method
