"""execution-core over an engine of the host's own, as its README shows."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata

from execution_core import ExecutionManager, SqlExecutionStore
from execution_core.sql.engines import create_sync_engine

from . import PAYLOAD, RESULT


def version() -> str:
    return f"execution-core {metadata.version('execution-core')}"


@contextmanager
def lifecycles(url: str) -> Iterator[Callable[[int], float]]:
    engine = create_sync_engine(url)
    manager = ExecutionManager(SqlExecutionStore(engine))

    def run(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            created = manager.create("ship-order", PAYLOAD, max_attempts=3)
            manager.start(created.id, worker="host-1")
            manager.complete(created.id, RESULT)
        return time.perf_counter() - begun

    yield run
    engine.dispose()
