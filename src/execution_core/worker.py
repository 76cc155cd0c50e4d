"""Workers: the loop that claims executions, runs a function for each, and sweeps.

The decisions are in `tracking.worker_loop`. The database decides what is due and who gets it.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from .core.models import Execution
from .core.steps import run, run_async
from .tracking.async_attempt import AsyncAttempt
from .tracking.async_manager import AsyncExecutionManager
from .tracking.attempt import Attempt
from .tracking.manager import ExecutionManager
from .tracking.worker_loop import WorkerLoop

__all__ = ["AsyncWorker", "Worker"]

CANCEL_SECONDS: Final = 10.0
"""How long cancelled functions may take to end, and to record that they were interrupted."""


class Worker(WorkerLoop[ExecutionManager, Callable[[Attempt], Any]]):
    """Runs a function for each execution that is due: `Worker(manager, {"ship": ship}).run()`.

    A function gets the attempt and returns the result, any JSON value. It runs in the block of the
    attempt, in a thread of its own. What it raises fails the attempt, and the worker continues.
    SystemExit and KeyboardInterrupt are retryable failures with the code `interrupted`.

    When the database is unavailable, the worker logs one warning and tries again after growing
    delays, up to 10 seconds. It also sweeps the types of `functions`, every 1.5 to 3 heartbeat
    intervals, with `retry=True`. The logger is `execution_core`.

    Args:
        manager: an `ExecutionManager`; heartbeats exclude `within` and in-memory SQLite.
        functions: a function for each type of execution. Other types are not claimed.
        concurrency: how many functions run at the same time, 1 to 10,000.
        worker: the name of the worker, 1 to 255 characters; by default host and process.
        heartbeat: the interval of the heartbeats of a running attempt.
        retry_on: the exceptions after which another attempt may help, as in `except`.
        backoff: the delay before the next attempt; by default 5 seconds, doubled each time, up to
            an hour. None for no delay.
        stalled_after: how long an attempt may be silent before a sweep ends it; by default six
            heartbeat intervals.
        poll: the longest pause between claims that find nothing; it begins with 50 milliseconds.
        grace: how long `stop` lets running functions continue.
        signals: whether SIGTERM and SIGINT stop a worker that runs in the main thread.

    Raises:
        InvalidValue: an argument is invalid, such as an async function.
    """

    _manager_class = ExecutionManager
    _is_async = False
    _wakes_class = SimpleQueue  # its `put` may be called in a signal handler

    def run(self) -> None:
        """Work until `stop` is called or a signal arrives: `worker.run()`.

        Then it claims nothing more, waits up to `grace` for running functions, and returns.
        A thread cannot be ended: a function that still runs continues in its daemon thread until
        the process exits. A sweep then finds its execution.
        """
        with self._enter():
            run(self._run_steps())

    def _begin(self, execution: Execution) -> None:
        thread = threading.Thread(
            target=self._execute, args=(execution,), name=f"worker-{execution.id}", daemon=True
        )
        self._running[execution.id, execution.attempts] = thread
        thread.start()

    def _execute(self, execution: Execution) -> None:
        error: BaseException | None = None
        try:
            with self._attempt(execution) as attempt:
                attempt.result = self._functions[execution.type](attempt)
        except BaseException as raised:  # noqa: BLE001 - the attempt has recorded it
            error = raised
        self._finish(execution, error)

    def _wait(self, seconds: float) -> None:
        with suppress(Empty):
            self._wakes.get(timeout=seconds)
            while True:
                self._wakes.get_nowait()

    def _end(self) -> None:
        self._warn_of_running()

    def _wake_up(self) -> None:
        self._wakes.put(None)


class AsyncWorker(WorkerLoop[AsyncExecutionManager, Callable[[AsyncAttempt], Awaitable[Any]]]):
    """Runs an async function for each execution that is due: `await AsyncWorker(...).run()`.

    As `Worker`, with the same arguments, for an `AsyncExecutionManager` and `async def` functions.
    A function runs in a task of its own. A function that blocks the event loop blocks the
    heartbeats of all attempts. `stop` may also be called from other threads.
    """

    _manager_class = AsyncExecutionManager
    _is_async = True
    _wakes_class = asyncio.Event
    _loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> None:
        """Work until `stop` is called or a signal arrives: `await worker.run()`.

        Then it claims nothing more, waits up to `grace` for running functions, and cancels those
        that still run: a retryable failure with the code `interrupted`. If `run` is cancelled, it
        does so without waiting.
        """
        with self._enter():
            self._loop = asyncio.get_running_loop()
            # In a task of its own: a cancelled claim would leave executions running.
            steps = asyncio.create_task(run_async(self._run_steps()))
            try:
                await asyncio.shield(steps)
            except asyncio.CancelledError:
                self._grace = 0
                self.stop()
                await asyncio.wait([steps])
                raise

    async def _begin(self, execution: Execution) -> None:
        task = asyncio.create_task(self._execute(execution), name=f"worker-{execution.id}")
        self._running[execution.id, execution.attempts] = task
        await asyncio.sleep(0)  # it enters its block: a task that has not begun records nothing

    async def _execute(self, execution: Execution) -> None:
        error: BaseException | None = None
        try:
            async with self._attempt(execution) as attempt:
                attempt.result = await self._functions[execution.type](attempt)
        except BaseException as raised:  # noqa: BLE001 - the attempt has recorded it
            error = raised
        self._finish(execution, error)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wakes.wait()
        self._wakes.clear()

    async def _end(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
        self._warn_of_running()

    def _wake_up(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wakes.set)
