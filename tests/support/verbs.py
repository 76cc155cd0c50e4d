"""Every verb as a call, sync or async, on an execution in a given state."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from execution_core import Execution

SOON = timedelta(milliseconds=1)

UNKNOWN = "0198a000-0000-7000-8000-000000000001"

Call = Callable[[Any, Execution], Any]


@dataclass(frozen=True)
class Verb:
    """A call, sync or async, on an execution in a state."""

    state: str
    call: Call
    writes: bool = True


def news(parent_id: str) -> list[dict[str, Any]]:
    """Return items for `create_many`: one statement creates both."""
    child = {"type": "new", "parent_id": parent_id}
    return [child, {"type": "new", "payload": 2, "idempotency_key": f"of {parent_id}"}]


VERBS = {
    "create": Verb("pending", lambda m, x: m.create("new", {"n": 2}, metadata={"m": 1})),
    "create with a key": Verb("pending", lambda m, x: m.create("new", 2, idempotency_key="free")),
    "create_many": Verb("running", lambda m, x: m.create_many(news(x.id))),
    "create with a parent": Verb("running", lambda m, x: m.create("new", parent_id=x.id)),
    "start": Verb("pending", lambda m, x: m.start(x.id, worker="w")),
    "complete": Verb("running", lambda m, x: m.complete(x.id, {"r": 1}, attempt=1)),
    "fail": Verb("running", lambda m, x: m.fail(x.id, "no", retryable=True, retry_after=SOON)),
    "complete_many": Verb("running", lambda m, x: m.complete_many([(x, [1]), (UNKNOWN, 2)])),
    "fail_many": Verb(
        "running", lambda m, x: m.fail_many([(x, "no"), (UNKNOWN, "no")], retry_after=SOON)
    ),
    "fail for good": Verb("retrying", lambda m, x: m.fail(x.id, "no")),
    "finish_with_children": Verb("running", lambda m, x: m.finish_with_children(x.id, attempt=1)),
    "cancel_tree": Verb("running", lambda m, x: m.cancel_tree(x.id, "why not")),
    "timeout": Verb("running", lambda m, x: m.timeout(x.id)),
    "cancel": Verb("running", lambda m, x: m.cancel(x.id, "why not")),
    "cancel retrying": Verb("retrying", lambda m, x: m.cancel(x.id, by="ada")),
    "retry": Verb("failed", lambda m, x: m.retry(x.id)),
    "retry of retrying": Verb("retrying", lambda m, x: m.retry(x.id, extra_attempts=3)),
    "release": Verb("running", lambda m, x: m.release(x.id)),
    "annotate": Verb("running", lambda m, x: m.annotate(x.id, {"k": [1]})),
    "redact": Verb("failed", lambda m, x: m.redact(x.id)),
    "replay": Verb("failed", lambda m, x: m.replay(x.id)),
    "heartbeat": Verb("running", lambda m, x: m.heartbeat(x.id)),
    "update_progress": Verb("running", lambda m, x: m.update_progress(x.id, 1, 2, message="half")),
    "checkpoint": Verb("running", lambda m, x: m.checkpoint(x.id, "k", [1])),
    "advance": Verb("running", lambda m, x: m.advance(x.id, 1, 2, key="k", value=2)),
    "claim": Verb("pending", lambda m, x: m.claim("work", limit=2, worker="w")),
    "sweep": Verb("running", lambda m, x: m.sweep()),
    "log": Verb("running", lambda m, x: m.log(x.id, "said", data=[1])),
    "delete": Verb("running", lambda m, x: m.delete(x.id)),
    "prune": Verb("completed", lambda m, x: m.prune(timedelta(0))),
    "create again": Verb(
        "running", lambda m, x: m.create("work", 1, idempotency_key="key-1"), writes=False
    ),
    "get": Verb("running", lambda m, x: m.get(x.id), writes=False),
    "find_by_idempotency_key": Verb(
        "running", lambda m, x: m.find_by_idempotency_key("key-1"), writes=False
    ),
    "children": Verb("running", lambda m, x: m.children(x.id), writes=False),
    "list": Verb("running", lambda m, x: m.list(), writes=False),
    "wait": Verb("completed", lambda m, x: m.wait(x.id), writes=False),
    "wait_children": Verb("running", lambda m, x: m.wait_children(x.id), writes=False),
    "logs": Verb("running", lambda m, x: m.logs(x.id), writes=False),
    "history": Verb("running", lambda m, x: m.history(x.id), writes=False),
    "attempts": Verb("running", lambda m, x: m.attempts(x.id), writes=False),
    "a refusal": Verb("completed", lambda m, x: m.start(x.id), writes=False),
}
