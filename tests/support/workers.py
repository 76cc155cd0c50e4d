"""Workers in threads, sync and async, whose functions are written once."""

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from execution_core import ExecutionManager, connect, connect_async
from execution_core.worker import AsyncWorker, Worker

PATIENCE = 60

Function = Callable[[Any], Any]


def new_worker(manager: Any, functions: Mapping[str, Function], **options: Any) -> Any:
    """Return a worker; that of an async manager runs plain functions in threads."""
    options = {"poll": timedelta(milliseconds=100)} | options
    if isinstance(manager, ExecutionManager):
        return Worker(manager, functions, **options)
    return AsyncWorker(manager, {t: _to_async(f) for t, f in functions.items()}, **options)


def _to_async(function: Function) -> Function:
    async def call(attempt: Any) -> Any:
        return await asyncio.to_thread(function, attempt)

    return function if inspect.iscoroutinefunction(function) else call


def connect_worker(url: str, mode: str, functions: Mapping[str, Function], **options: Any) -> Any:
    """Return a worker with connections of its own."""
    manager = connect(url) if mode == "sync" else connect_async(url)
    return new_worker(manager, functions, **options)


@contextmanager
def running(worker: Any) -> Iterator[Future[None]]:
    """Run a worker in a thread; stop it at the end, and raise what it raised."""
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(run, worker)
        try:
            yield future
        finally:
            worker.stop()
            future.result(PATIENCE)


def run(worker: Any) -> None:
    """Run a worker to its end, and close its connections."""
    manager = worker._manager
    if isinstance(worker, Worker):
        with manager:
            worker.run()
        return

    async def run_async() -> None:
        async with manager:
            await worker.run()

    asyncio.run(run_async())
