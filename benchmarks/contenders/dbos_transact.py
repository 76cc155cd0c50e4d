"""DBOS Transact: a workflow without steps, called directly.

The direct call is the fastest: `start_workflow` adds a thread, and queues add polling. It makes two
durable commits: first the row of the workflow with its inputs, already running, then its outcome.
Only errors are logged; tracing and the Conductor are off. Arguments use the default serializer,
because a JSON serializer is not faster.
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
    """Return the name and version that the figures show."""
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
        # DBOS keeps the journal mode of the file. WAL is twice as fast; its own tests use it.
        with closing(sqlite3.connect(at.database or "")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    else:
        succeeded = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'"
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": url,
            # By default SQLAlchemy would send a query before each use to test the connection.
            "db_engine_kwargs": {"pool_pre_ping": False},
            "use_listen_notify": False,  # nothing here waits for messages
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
        elapsed = time.perf_counter() - begun
        total += count
        require(url, total, succeeded)
        return elapsed

    try:
        yield run
    finally:
        DBOS.destroy()
