"""Ways to lose an attempt, and a store whose database is down."""

from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import OperationalError

from execution_core import ExecutionManager

Lose = Callable[[ExecutionManager, str], Any]
LOSSES: dict[str, tuple[Lose, str]] = {
    "cancelled": (lambda m, id: m.cancel(id, "enough"), "its status is cancelled"),
    "timed out": (lambda m, id: m.timeout(id), "its status is timed_out"),
    "to be retried": (lambda m, id: (m.timeout(id), m.retry(id)), "its status is retrying"),
    "taken over": (
        lambda m, id: (m.timeout(id), m.retry(id), m.start(id)),
        "attempt 2 has taken over",
    ),
    "completed": (lambda m, id: m.complete(id), "its status is completed"),
    "failed": (lambda m, id: m.fail(id, "given up"), "its status is failed"),
    "deleted": (lambda m, id: m.delete(id), "it was deleted"),
}


class Outage(Exception):
    """An error that the tests retry on."""


class UnreachableStore:
    """A store whose database can be switched off: `store.down = True`."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.down = False

    def __getattr__(self, name: str) -> Any:
        if self.down and name not in ("shares_connection", "single_writer"):
            raise OperationalError("UPDATE …", (), ConnectionError("the server has gone"))
        return getattr(self.store, name)
