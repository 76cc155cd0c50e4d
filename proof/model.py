"""What each verb does to one execution, said once more and by itself.

Nothing of the library's is used here: an oracle that asks the accused is none.
"""

from typing import Any, Final, NamedTuple

from .journal import Json, Operation

Frozen = Any


class Row(NamedTuple):
    """An execution without its times, as a value."""

    status: str
    attempts: int
    worker: str | None
    error: Frozen
    result: Frozen
    progress: Frozen
    metadata: frozenset[tuple[str, Frozen]]
    checkpoints: frozenset[tuple[str, Frozen]]
    max_attempts: int
    rest: Frozen
    """What nothing changes."""


LIVE: Final = ("pending", "running", "retrying")
OVER: Final = ("completed", "cancelled")
SOURCES: Final = {
    "start": ("pending", "retrying"),
    "claim": ("pending", "retrying"),
    "heartbeat": ("running",),
    "update_progress": LIVE,
    "checkpoint": LIVE,
    "advance": LIVE,
    "complete": ("running",),
    "fail": ("running", "retrying"),
    "timeout": ("running",),
    "sweep": ("running",),
    "cancel": ("pending", "running"),
    "retry": ("failed", "timed_out"),
}
"""From which status a verb may be called."""
TARGETS: Final = {
    "create": ("pending",),
    "start": ("running",),
    "claim": ("running",),
    "complete": ("completed",),
    "fail": ("failed", "retrying"),
    "timeout": ("timed_out",),
    "sweep": ("timed_out",),
    "cancel": ("cancelled",),
    "retry": ("retrying",),
}
"""What a verb that moves an execution makes of it."""
ARROWS: Final = {(None, "pending")} | {
    (source, target)
    for verb, targets in TARGETS.items()
    for source in SOURCES.get(verb, ())
    for target in targets
    if source != target
}
TIMEOUT: Final = ("timeout", "Execution timed out")
STALLED: Final = ("stalled", "Execution stalled: no heartbeat from its worker")


def freeze(value: Any) -> Frozen:
    """Return JSON as a value that can be compared and remembered."""
    match value:
        case dict():
            return frozenset((key, freeze(part)) for key, part in value.items())
        case list():
            return tuple(map(freeze, value))
    return value


def row(answer: Json) -> Row:
    """Return an execution that was answered as a value."""
    own = {name: freeze(answer[name]) for name in Row._fields if name != "rest"}
    rest = {
        name: value
        for name, value in answer.items()
        if name not in own and not name.endswith("_at")  # see `times`
    }
    return Row(**own, rest=freeze(rest))


def created(operation: Operation, id: str) -> Row:
    """Return the execution that a `create` makes."""
    unset = dict.fromkeys(("worker", "error", "result", "progress", "parent_id", "replay_of"))
    given = {"metadata": {}, "payload": None, "timeout": None, **operation.arguments}
    return row({"id": id, "status": "pending", "attempts": 0, "checkpoints": {}, **unset, **given})


def is_same_work(operation: Operation, found: Row) -> bool:
    """Whether this is the execution that a `create` asks for: its key, type and payload."""
    asked = ("idempotency_key", "type", "payload")
    return all((name, freeze(operation.arguments[name])) in found.rest for name in asked)


def after(operation: Operation, found: Row) -> Row | None:
    """Return the execution as an operation leaves it; None where the operation may not act."""
    if not (_is_source(operation, found) and _is_owner(operation, found)):
        return None
    if operation.verb in ("start", "retry") and not _attempt_left(found):
        return None
    return _changed(operation, found)


def refusal(operation: Operation, found: Row) -> Json:
    """Return why an operation that did not act is refused, from the row that was found then."""
    if operation.verb == "create":
        same = is_same_work(operation, found)
        return {"code": "CONCURRENT_UPDATE" if same else "IDEMPOTENCY_CONFLICT"}
    if not _is_source(operation, found):
        return {"code": "INVALID_STATE_TRANSITION", "from_status": found.status}
    if operation.verb in ("start", "retry") and not _attempt_left(found):
        used = {"attempts": found.attempts, "max_attempts": found.max_attempts}
        return {"code": "MAX_RETRIES_EXCEEDED", **used}
    if not _is_owner(operation, found):
        return {"code": "STALE_ATTEMPT", "current_attempt": found.attempts}
    return {"code": "CONCURRENT_UPDATE"}


def _is_source(operation: Operation, found: Row) -> bool:
    if operation.arguments.get("attempt") is not None:  # an attempt owns only what is running
        return found.status == "running"
    return found.status in SOURCES[operation.verb]


def _is_owner(operation: Operation, found: Row) -> bool:
    return operation.arguments.get("attempt") in (None, found.attempts)


def _attempt_left(found: Row) -> bool:
    return found.attempts < found.max_attempts


def _changed(operation: Operation, found: Row) -> Row:
    given = operation.arguments
    changes: dict[str, Frozen] = {}  # a heartbeat makes none
    match operation.verb:
        case "start" | "claim":
            changes = {"status": "running", "attempts": found.attempts + 1, "error": None}
            changes["worker"] = given["worker"]
        case "update_progress" | "checkpoint" | "advance":
            changes = _written(found, given)
        case "complete":
            changes = {"status": "completed", "result": freeze(given["result"])}
        case "fail":
            again = given["retryable"] and found.status == "running" and _attempt_left(found)
            changes = {"status": "retrying" if again else "failed"}
            changes["error"] = _error(None, given["error"], retryable=given["retryable"])
        case "timeout" | "sweep":
            code, message = STALLED if given.get("stalled_after") else TIMEOUT
            changes = {"status": "timed_out", "error": _error(code, message, retryable=True)}
        case "cancel":
            changes = {"status": "cancelled"}
            if (reason := given["reason"]) is not None:
                changes["metadata"] = _set(found.metadata, "cancellation_reason", reason)
        case "retry":
            changes = {"status": "retrying", "error": None}
    return found._replace(**changes) if changes else found


def _written(found: Row, given: Json) -> dict[str, Frozen]:
    changes: dict[str, Frozen] = {}
    if "current" in given:
        names = ("current", "total", "message", "percent")
        changes["progress"] = freeze({name: given[name] for name in names})
    if "key" in given:
        changes["checkpoints"] = _set(found.checkpoints, given["key"], given["value"])
    return changes


def _set(
    entries: frozenset[tuple[str, Frozen]], key: str, value: Any
) -> frozenset[tuple[str, Frozen]]:
    return frozenset(entry for entry in entries if entry[0] != key) | {(key, freeze(value))}


def _error(code: str | None, message: str, *, retryable: bool) -> Frozen:
    return freeze({"code": code, "message": message, "retryable": retryable, "stack": None})
