"""Procrastinate: jobs are deferred one by one, and a worker of concurrency 1 runs them.

The worker runs afterwards, as in the benchmarks of the project: one step at a time, as for all
other contenders. Or, with `beside`, it runs in the same event loop as the caller, as in the FastAPI
example of its documentation; then two connections work at the same time. Its documentation names no
event loop; uvloop is about 8 % faster. It keeps finished jobs (its default) but stores no results.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import uvloop
from procrastinate import App, PsycopgConnector
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import make_url

from . import PAYLOAD, RESULT
from .recorded import require

SUCCEEDED = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"


def version() -> str:
    """Return the name and version that the figures show."""
    return f"Procrastinate {metadata.version('procrastinate')}"


@contextmanager
def lifecycles(url: str, *, beside: bool = False) -> Iterator[Callable[[int], float]]:
    """Yield a function that runs a number of lifecycles and returns the seconds they took."""
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    app = App(connector=PsycopgConnector())
    # The documentation allows a pool of the host. This one tests no connection before each use and
    # sends single statements without BEGIN and COMMIT.
    pool = AsyncConnectionPool(dsn, min_size=2, max_size=4, open=False, configure=_autocommit)
    ran = asyncio.Semaphore(0)
    total = 0

    @app.task
    async def ship_order(payload: dict[str, Any]) -> dict[str, Any]:
        ran.release()
        return RESULT

    async def set_up() -> None:
        await pool.open(wait=True)
        await app.open_async(pool)
        await app.schema_manager.apply_schema_async()

    async def defer_then_run(count: int) -> None:
        for _ in range(count):
            await ship_order.defer_async(payload=PAYLOAD)
        await app.run_worker_async(wait=False, install_signal_handlers=False)

    async def defer_and_run(count: int) -> None:
        async with asyncio.TaskGroup() as group:
            worker = group.create_task(app.run_worker_async(install_signal_handlers=False))
            for _ in range(count):
                await ship_order.defer_async(payload=PAYLOAD)
            for _ in range(count):
                await ran.acquire()
            worker.cancel()  # it still records the running job

    def run(count: int) -> float:
        nonlocal total
        begun = time.perf_counter()
        runner.run(defer_and_run(count) if beside else defer_then_run(count))
        elapsed = time.perf_counter() - begun
        total += count
        require(url, total, SUCCEEDED)
        return elapsed

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(set_up())
        yield run
        runner.run(pool.close())


async def _autocommit(connection: AsyncConnection[Any]) -> None:
    await connection.set_autocommit(True)
