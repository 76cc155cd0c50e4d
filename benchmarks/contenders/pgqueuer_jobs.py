"""PgQueuer: jobs are enqueued one by one, then a worker drains the queue.

With asyncpg and uvloop, as its documentation and its command line recommend, on durable tables (its
default) with its autovacuum settings. By default it works in batches: a worker takes 10 jobs with
one statement and deletes up to 10 finished jobs with another, so a job costs 1.2 commits. It keeps
a log of each finished job, without payload or result.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata

import asyncpg  # type: ignore[import-untyped]
import uvloop
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode
from sqlalchemy import make_url

from . import PAYLOAD
from .recorded import require

SUCCESSFUL = "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"


def version() -> str:
    """Return the name and version that the figures show."""
    return f"PgQueuer {metadata.version('pgqueuer')}"


@contextmanager
def lifecycles(url: str, *, batch: int = 10) -> Iterator[Callable[[int], float]]:
    """Yield a function that runs a number of lifecycles and returns the seconds they took."""
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    total = 0

    async def set_up() -> tuple[asyncpg.Connection, Queries]:
        connection = await asyncpg.connect(dsn)
        queries = Queries(AsyncpgDriver(connection))
        await queries.install()
        await queries.optimize_autovacuum()
        return connection, queries

    async def enqueue_and_run(count: int) -> None:
        for _ in range(count):
            await queries.enqueue("ship-order", json.dumps(PAYLOAD).encode())
        manager = QueueManager(queries)

        @manager.entrypoint("ship-order")
        async def ship_order(job: Job) -> None:
            json.loads(job.payload or b"")

        # Draining the queue afterwards is slightly faster than a worker that runs at the same time.
        await manager.run(mode=QueueExecutionMode.drain, batch_size=batch)

    def run(count: int) -> float:
        nonlocal total
        begun = time.perf_counter()
        runner.run(enqueue_and_run(count))
        elapsed = time.perf_counter() - begun
        total += count
        require(url, total, SUCCESSFUL)
        return elapsed

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection, queries = runner.run(set_up())
        yield run
        runner.run(connection.close())
