"""A second, independent model of what each verb does to one execution.

It uses nothing of the library: a shared error would hide itself.
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
    """The fields that never change."""


LIVE: Final = ("pending", "running", "retrying")
FINAL: Final = ("completed", "cancelled")
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
    "cancel": LIVE,
    "retry": ("pending", "retrying", "failed", "timed_out"),
    "release": ("running",),
}
"""The statuses in which a verb is allowed."""
TARGETS: Final = {
    "create": ("pending",),
    "start": ("running",),
    "claim": ("running",),
    "complete": ("completed",),
    "fail": ("failed", "retrying"),
    "timeout": ("timed_out",),
    "sweep": ("timed_out", "retrying"),
    "cancel": ("cancelled",),
    "retry": ("retrying",),
    "release": ("retrying",),
}
"""The statuses that a verb leads to."""
ALLOWED_TRANSITIONS: Final = {(None, "pending")} | {
    (source, target)
    for verb, targets in TARGETS.items()
    for source in SOURCES.get(verb, ())
    for target in targets
    if source != target and (source, target) != ("pending", "retrying")
}
TIMEOUT: Final = ("timeout", "Execution timed out")
STALLED: Final = ("stalled", "Execution stalled: no heartbeat from its worker")


def freeze(value: Any) -> Frozen:
    """Return JSON as a hashable value."""
    match value:
        case dict():
            return frozenset((key, freeze(part)) for key, part in value.items())
        case list():
            return tuple(map(freeze, value))
    return value


def row(answer: Json) -> Row:
    """Return an execution of an answer as a hashable value."""
    own = {name: freeze(answer[name]) for name in Row._fields if name != "rest"}
    rest = {
        name: value
        for name, value in answer.items()
        if name not in own and not name.endswith(("_at", "_since"))  # see `times`
    }
    return Row(**own, rest=freeze(rest))


def created(operation: Operation, id: str) -> Row:
    """Return the execution that a `create` makes."""
    names = ("worker", "error", "result", "progress", "parent_id", "replay_of")
    unset = dict.fromkeys((*names, "awaits_children_since"))
    given = {"metadata": {}, "payload": None, "timeout": None, **operation.arguments}
    return row({"id": id, "status": "pending", "attempts": 0, "checkpoints": {}, **unset, **given})


def is_same_work(operation: Operation, found: Row) -> bool:
    """Return whether a `create` asks for this execution: the same key, type and payload."""
    asked = ("idempotency_key", "type", "payload")
    return all((name, freeze(operation.arguments[name])) in found.rest for name in asked)


def after(operation: Operation, found: Row) -> Row | None:
    """Return the execution after an operation; None where the operation is refused."""
    if not (_is_source(operation, found) and _is_owner(operation, found)):
        return None
    if _needs_attempt(operation, found) and not _attempt_left(found):
        return None
    return _changed(operation, found)


def refusal(operation: Operation, found: Row) -> Json:
    """Return the reason of a refusal, from the row that was read after it."""
    if operation.verb == "create":
        same = is_same_work(operation, found)
        return {"code": "CONCURRENT_UPDATE" if same else "IDEMPOTENCY_CONFLICT"}
    if not _is_source(operation, found):
        return {"code": "INVALID_STATE_TRANSITION", "from_status": found.status}
    if _needs_attempt(operation, found) and not _attempt_left(found):
        used = {"attempts": found.attempts, "max_attempts": found.max_attempts}
        return {"code": "MAX_RETRIES_EXCEEDED", **used}
    if not _is_owner(operation, found):
        return {"code": "STALE_ATTEMPT", "current_attempt": found.attempts}
    return {"code": "CONCURRENT_UPDATE"}


def _is_source(operation: Operation, found: Row) -> bool:
    if operation.arguments.get("attempt") is not None:  # an attempt owns only a running execution
        return found.status == "running"
    return found.status in SOURCES[operation.verb]


def _is_owner(operation: Operation, found: Row) -> bool:
    return operation.arguments.get("attempt") in (None, found.attempts)


def _needs_attempt(operation: Operation, found: Row) -> bool:
    if operation.verb == "retry":
        ended = found.status in ("failed", "timed_out")
        return ended and not operation.arguments.get("extra_attempts")
    return operation.verb == "start"


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
            changes = _progress_changes(found, given)
        case "complete":
            changes = {"status": "completed", "result": freeze(given["result"])}
        case "fail":
            retrying = given["retryable"] and found.status == "running" and _attempt_left(found)
            changes = {"status": "retrying" if retrying else "failed"}
            changes["error"] = _error(None, given["error"], retryable=given["retryable"])
        case "timeout" | "sweep":
            code, message = STALLED if given.get("stalled_after") else TIMEOUT
            retrying = given.get("retry") and _attempt_left(found)
            changes = {"status": "retrying" if retrying else "timed_out"}
            changes["error"] = _error(code, message, retryable=True)
        case "cancel" | "retry" | "release":
            changes = _operator_changes(operation.verb, found, given)
    return found._replace(**changes) if changes else found


def _operator_changes(verb: str, found: Row, given: Json) -> dict[str, Frozen]:
    if verb == "release":
        return {"status": "retrying", "max_attempts": found.max_attempts + 1}
    if verb == "retry":
        allowed = found.attempts + given.get("extra_attempts", 0)
        changes: dict[str, Frozen] = {"max_attempts": max(found.max_attempts, allowed)}
        ended = found.status in ("failed", "timed_out")
        return changes | ({"status": "retrying", "error": None} if ended else {})
    changes = {"status": "cancelled", "error": None}
    if (reason := given["reason"]) is not None:
        changes["metadata"] = _set(found.metadata, "cancellation_reason", reason)
    return changes


def _progress_changes(found: Row, given: Json) -> dict[str, Frozen]:
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
