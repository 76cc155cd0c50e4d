"""execution-core for asyncio on the engine of the host, or on its own (`connect_async`)."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.ext.asyncio import create_async_engine

from execution_core import AsyncExecutionManager, AsyncSqlExecutionStore, connect_async, migrate

from . import PAYLOAD, RESULT
from .library import version
from .plain_sql_asyncio import spread

__all__ = ["lifecycles", "version"]


@contextmanager
def lifecycles(url: str, *, own: bool = False, tasks: int = 1) -> Iterator[Callable[[int], float]]:
    """Yield a function that runs a number of lifecycles and returns the seconds they took."""
    migrate.upgrade(url)
    engine = create_async_engine(url, pool_size=max(tasks, 5))
    manager = connect_async(url) if own else AsyncExecutionManager(AsyncSqlExecutionStore(engine))

    async def lifecycle(task: int) -> None:
        created = await manager.create("ship-order", PAYLOAD, max_attempts=3)
        await manager.start(created.id, worker="host-1")
        await manager.complete(created.id, RESULT)

    with asyncio.Runner() as runner:
        yield lambda count: runner.run(spread(lifecycle, count, tasks))
        runner.run(manager.close())
        runner.run(engine.dispose())
