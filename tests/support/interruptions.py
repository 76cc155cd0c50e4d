"""Interruptions at chosen moments: of a task at each of its awaits."""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

Work = Coroutine[Any, Any, Any]
Way = Callable[[asyncio.Task[Any], Any], BaseException | None]


def cancel_at_once(task: asyncio.Task[Any], awaited: Any) -> None:
    """Cancel a task while it waits."""
    task.cancel()


def cancel_late(task: asyncio.Task[Any], awaited: Any) -> None:
    """Cancel a task when what was waited for has come, and nobody has been told yet."""
    if awaited is None:  # asyncio.sleep(0)
        task.get_loop().call_soon(task.cancel)
    else:
        awaited.add_done_callback(lambda _: task.cancel())


class Awaits:
    """Counts what is awaited in a task and in all tasks that it makes; interrupts at the n-th.

    `await awaits.run(work, {3: cancel_at_once})`. What a way returns is raised there.
    """

    def __init__(self) -> None:
        self._watch({})
        asyncio.get_running_loop().set_task_factory(self._make)

    def _watch(self, ways: dict[int, Way]) -> None:
        self._ways = ways
        self.seen = self.interrupted = 0
        self._tasks: list[asyncio.Task[Any]] = []

    async def run(self, work: Work, ways: dict[int, Way]) -> BaseException | None:
        """Return how it ended, once all that it began in the background has ended as well."""
        self._watch(ways)
        task = asyncio.get_running_loop().create_task(work)
        await asyncio.wait([task], timeout=20)
        begun, self._tasks, self._ways = self._tasks, [], {}
        _, running = await asyncio.wait(begun, timeout=10)
        assert not running, running
        ends = [asyncio.CancelledError() if t.cancelled() else t.exception() for t in begun]
        return ends[0]

    async def here(self, work: Work, ways: dict[int, Way]) -> None:
        """Do it in the caller's own task."""
        self._watch(ways)
        self._tasks += filter(None, [asyncio.current_task()])
        await self._stepped(work)

    def _make(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        task = asyncio.Task(self._watched(work), loop=loop, **options)
        self._tasks.append(task)
        return task

    async def _watched(self, work: Work) -> Any:
        return await self._stepped(work)

    @types.coroutine
    def _stepped(self, work: Work) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = partial(work.send, None)
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            self.seen += 1
            raised = None
            if way := self._ways.get(self.seen):
                self.interrupted += 1
                raised = way(self._tasks[0], awaited)
            try:
                yield awaited
            except BaseException as error:
                raised = raised or error
            step = partial(work.throw, raised) if raised else partial(work.send, None)
