"""Interrupt a task at a chosen await."""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

Work = Coroutine[Any, Any, Any]
Interrupt = Callable[[asyncio.Task[Any], Any], BaseException | None]


def cancel_while_waiting(task: asyncio.Task[Any], awaited: Any) -> None:
    """Cancel a task while it waits."""
    task.cancel()


def cancel_after_result(task: asyncio.Task[Any], awaited: Any) -> None:
    """Cancel a task when its result has arrived, before the task is resumed."""
    if awaited is None:  # asyncio.sleep(0)
        task.get_loop().call_soon(task.cancel)
    else:
        awaited.add_done_callback(lambda _: task.cancel())


class AwaitInterrupter:
    """Count the awaits of a task and of the tasks that it creates; interrupt at the n-th.

    `await awaits.run(work, {3: cancel_while_waiting})`. An exception that an interrupt returns is
    raised at that await.
    """

    def __init__(self) -> None:
        self._reset({})
        asyncio.get_running_loop().set_task_factory(self._make)

    def _reset(self, interrupts: dict[int, Interrupt]) -> None:
        self._interrupts = interrupts
        self.seen = self.interrupted = 0
        self._tasks: list[asyncio.Task[Any]] = []

    async def run(self, work: Work, interrupts: dict[int, Interrupt]) -> BaseException | None:
        """Run to the end, background tasks included; return the exception, if any."""
        self._reset(interrupts)
        task = asyncio.get_running_loop().create_task(work)
        await asyncio.wait([task], timeout=20)
        tasks, self._tasks, self._interrupts = self._tasks, [], {}
        _, running = await asyncio.wait(tasks, timeout=10)
        assert not running, running
        ends = [asyncio.CancelledError() if t.cancelled() else t.exception() for t in tasks]
        return ends[0]

    async def run_here(self, work: Work, interrupts: dict[int, Interrupt]) -> None:
        """Run in the current task."""
        self._reset(interrupts)
        self._tasks += filter(None, [asyncio.current_task()])
        await self._step_through(work)

    def _make(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        task = asyncio.Task(self._run_task(work), loop=loop, **options)
        self._tasks.append(task)
        return task

    async def _run_task(self, work: Work) -> Any:
        return await self._step_through(work)

    @types.coroutine
    def _step_through(self, work: Work) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = partial(work.send, None)
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            self.seen += 1
            raised = None
            if interrupt := self._interrupts.get(self.seen):
                self.interrupted += 1
                raised = interrupt(self._tasks[0], awaited)
            try:
                yield awaited
            except BaseException as error:
                raised = raised or error
            step = partial(work.throw, raised) if raised else partial(work.send, None)
