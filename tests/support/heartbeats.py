"""Watch the heartbeats that a manager sends in the background."""

import threading
from datetime import timedelta
from typing import Any

EVERY = timedelta(milliseconds=5)
Key = tuple[str, int]


def heartbeat_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "heartbeats"]


def record_calls(manager: Any) -> list[set[Key]]:
    """Return a list to which each call that sends heartbeats adds the attempts that it sends."""
    store, calls = getattr(manager, "target", manager)._store, list[set[Key]]()
    heartbeat_many = store.heartbeat_many

    def recorded(attempts: list[Key]) -> Any:
        calls.append({*attempts})
        return heartbeat_many(attempts)

    store.heartbeat_many = recorded
    return calls
