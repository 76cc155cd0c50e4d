"""Procrastinate: jobs are deferred one by one, and a worker of concurrency 1 runs them.

Either afterwards, as its own benchmarks do: one thing at a time, as for all the others. Or beside
the caller in one event loop, as in its documentation's FastAPI example; two connections then work
at the same time. Its documentation names no event loop; uvloop is some 8 % faster. It keeps
finished jobs, as is its default, but stores no results.
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
    """Name it as the figures do."""
    return f"Procrastinate {metadata.version('procrastinate')}"


@contextmanager
def lifecycles(url: str, *, beside: bool = False) -> Iterator[Callable[[int], float]]:
    """Yield a function that runs a number of lifecycles and returns the seconds they took."""
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    app = App(connector=PsycopgConnector())
    # A pool of the host's own, which the documentation allows, need not ask the server before each
    # use whether the connection still lives; and what is one statement needs no BEGIN and COMMIT.
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
            worker.cancel()  # it first records the job that it is at

    def run(count: int) -> float:
        nonlocal total
        begun = time.perf_counter()
        runner.run(defer_and_run(count) if beside else defer_then_run(count))
        taken = time.perf_counter() - begun
        total += count
        require(url, total, SUCCEEDED)
        return taken

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(set_up())
        yield run
        runner.run(pool.close())


async def _autocommit(connection: AsyncConnection[Any]) -> None:
    await connection.set_autocommit(True)
