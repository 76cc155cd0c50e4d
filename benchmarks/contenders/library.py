"""execution-core on the engine of the host, or on its own (`connect`)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from sqlalchemy import create_engine, event, make_url

from execution_core import ExecutionManager, SqlExecutionStore, configure_sqlite, connect, migrate

from . import PAYLOAD, RESULT


def version() -> str:
    """Return the name and version that the figures show."""
    return f"execution-core {metadata.version('execution-core')}"


@contextmanager
def lifecycles(
    url: str, *, own: bool = False, synchronous: str = "FULL"
) -> Iterator[Callable[[int], float]]:
    """Yield a function that runs a number of lifecycles and returns the seconds they took."""
    migrate.upgrade(url)
    engine = create_engine(url)
    if make_url(url).get_backend_name() == "sqlite":
        configure_sqlite(engine)

        @event.listens_for(engine, "connect")
        def set_synchronous(connection: Any, record: Any) -> None:
            connection.execute(f"PRAGMA synchronous = {synchronous}")

    with connect(url) if own else ExecutionManager(SqlExecutionStore(engine)) as manager:

        def run(count: int) -> float:
            begun = time.perf_counter()
            for _ in range(count):
                created = manager.create("ship-order", PAYLOAD, max_attempts=3)
                manager.start(created.id, worker="host-1")
                manager.complete(created.id, RESULT)
            return time.perf_counter() - begun

        yield run
    engine.dispose()
