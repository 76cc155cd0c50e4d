"""Cancel the task in the block of an attempt that is lost."""

import asyncio
from typing import Any


class TaskCancellation:
    """Sets an event when an attempt is lost, and cancels the task in its block, if it is to do so.

    It does that as `asyncio.timeout` does: at most once, and the request to cancel ends with the
    block. Heartbeats may refer to it, because it does not refer to the attempt.
    """

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._is_requested = False
        self._requests_before = 0

    def begin(self) -> None:
        """Cancel the current task once the attempt is lost."""
        self._task = asyncio.current_task()
        if self._task is not None:
            self._requests_before = self._task.cancelling()
            if self.lost.is_set():  # at the first await: the task is running now
                self._task.get_loop().call_soon(self._cancel)

    def on_loss(self) -> None:
        """Set the event, and cancel the task in the block."""
        self.lost.set()
        self._cancel()

    def end(self, error: BaseException | None) -> bool:
        """Leave the task alone; return whether the block was left because this cancelled it."""
        task, self._task = self._task, None
        if task is None or not self._is_requested:
            return False
        is_only_request = task.uncancel() <= self._requests_before
        return is_only_request and isinstance(error, asyncio.CancelledError)

    def _cancel(self) -> None:
        if self._task is not None and not self._is_requested:
            self._is_requested = True
            self._task.cancel("the attempt is lost")
