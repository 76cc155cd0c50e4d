"""Plain SQL over psycopg for asyncio: one connection per task, autocommit, prepared."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import make_url
from uuid_utils.compat import uuid7

from execution_core import migrate

from . import PAYLOAD, RESULT
from .plain_sql import POSTGRESQL, Row
from .plain_sql_psycopg import version

__all__ = ["lifecycles", "version"]

CREATE, START, COMPLETE = POSTGRESQL


async def spread(lifecycle: Callable[[int], Awaitable[None]], count: int, tasks: int) -> float:
    """Run lifecycles in a number of tasks and return the elapsed seconds."""

    async def share(task: int) -> None:
        for _ in range(count // tasks):
            await lifecycle(task)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for task in range(tasks):
            group.create_task(share(task))
    return time.perf_counter() - begun


@contextmanager
def lifecycles(url: str, *, tasks: int = 1) -> Iterator[Callable[[int], float]]:
    """Yield a function that runs a number of lifecycles and returns the seconds they took."""
    migrate.upgrade(url)
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)

    async def connect() -> list[psycopg.AsyncConnection[Any]]:
        return [await psycopg.AsyncConnection.connect(dsn, autocommit=True) for _ in range(tasks)]

    async def close() -> None:
        for connection in connections:
            await connection.close()

    with asyncio.Runner() as runner:
        connections = runner.run(connect())
        cursors = [connection.cursor() for connection in connections]

        async def execute(task: int, statement: str, parameters: tuple[Any, ...]) -> Row:
            cursor = cursors[task]
            await cursor.execute(statement, parameters, prepare=True)
            found = await cursor.fetchone()
            if found is None:
                raise RuntimeError("a statement matched no row")
            return Row(*found)

        async def lifecycle(task: int) -> None:
            created = await execute(
                task, CREATE, (str(uuid7()), "ship-order", json.dumps(PAYLOAD), 3)
            )
            await execute(task, START, ("host-1", created.id))
            await execute(task, COMPLETE, (json.dumps(RESULT), created.id))

        yield lambda count: runner.run(spread(lifecycle, count, tasks))
        runner.run(close())
