"""DBOS Transact: a workflow without steps, called directly.

The direct call is its fastest way: `start_workflow` adds a thread and queues add polling. It makes
two durable commits: the workflow's row and its inputs, already running, then its outcome. Logs
but errors, tracing and the Conductor are off; arguments go through the default serializer, since
one of JSON is no faster.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from typing import Any

from dbos import DBOS
from sqlalchemy import make_url

from . import PAYLOAD, RESULT
from .recorded import require


def version() -> str:
    """Name it as the figures do."""
    return f"DBOS Transact {metadata.version('dbos')}"


@DBOS.workflow()
def ship_order(payload: dict[str, Any]) -> dict[str, Any]:
    """Do no work."""
    return RESULT


@contextmanager
def lifecycles(url: str) -> Iterator[Callable[[int], float]]:
    """Yield a function that runs a number of lifecycles and returns the seconds they took."""
    at = make_url(url)
    if at.get_backend_name() == "sqlite":
        succeeded = "SELECT count(*) FROM workflow_status WHERE status = 'SUCCESS'"
        # DBOS keeps the mode that it finds in the file; as its own tests do, and twice as fast.
        with closing(sqlite3.connect(at.database or "")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    else:
        succeeded = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'"
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": url,
            # Its default asks the server before each use whether the connection still lives.
            "db_engine_kwargs": {"pool_pre_ping": False},
            "use_listen_notify": False,  # nobody waits for a message
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    total = 0

    def run(count: int) -> float:
        nonlocal total
        begun = time.perf_counter()
        for _ in range(count):
            ship_order(PAYLOAD)
        taken = time.perf_counter() - begun
        total += count
        require(url, total, succeeded)
        return taken

    try:
        yield run
    finally:
        DBOS.destroy()
