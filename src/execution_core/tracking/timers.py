"""The timers of event loops, which send the heartbeats of async attempts."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from datetime import timedelta
from typing import Any, Final
from weakref import WeakValueDictionary

from ..core.models import Execution
from ..core.steps import run_async
from .heartbeats import Heartbeat, HeartbeatSchedule

_timers: Final = WeakValueDictionary[tuple[int, int], "HeartbeatTimer"]()
"""The timers of the stores, by the ids of the store and of the event loop."""


def start_heartbeats(
    store: Any, execution: Execution, interval: timedelta, on_loss: Callable[[], object]
) -> "TimerHeartbeat":
    """Send the heartbeats of a running attempt, as long as something refers to the result."""
    loop = asyncio.get_running_loop()
    timer = _timers.get((id(store), id(loop)))
    if not hasattr(store, "heartbeat_many"):
        timer = HeartbeatTimer(store, loop, alone=True)
    elif timer is None:
        timer = _timers[id(store), id(loop)] = HeartbeatTimer(store, loop)
    heartbeat = TimerHeartbeat(execution, interval, on_loss)
    timer.add(heartbeat)
    return heartbeat


class TimerHeartbeat(Heartbeat):
    """The heartbeats of an async attempt."""

    timer: "HeartbeatTimer"
    call: asyncio.Task[Any] | None = None
    """The last call that has sent one."""

    async def end(self, *, wait: bool = True) -> None:
        """Send no further heartbeat; wait for a call under way that sends one."""
        self.timer.discard(self)
        if wait and self.call is not None:
            # Not cancelled: that would cost the connection of its statement.
            await asyncio.wait([self.call])


class HeartbeatTimer:
    """Sends the heartbeats of async attempts of a store, one call after the other."""

    def __init__(self, store: Any, loop: asyncio.AbstractEventLoop, *, alone: bool = False) -> None:
        self._store, self._loop = store, loop
        self._schedule = HeartbeatSchedule[TimerHeartbeat](store, loop.time, alone=alone)
        self._handle: asyncio.TimerHandle | None = None
        self._call: asyncio.Task[list[TimerHeartbeat]] | None = None

    def add(self, heartbeat: TimerHeartbeat) -> None:
        """Send the heartbeats of another attempt."""
        heartbeat.timer = self
        self._schedule.add(heartbeat)
        if self._call is None and (self._handle is None or heartbeat.due < self._handle.when()):
            self._set()

    def discard(self, heartbeat: TimerHeartbeat) -> None:
        """Send no further heartbeat of an attempt."""
        self._schedule.discard(heartbeat)
        if self._call is None and not self._schedule:
            self._set()

    def _set(self) -> None:
        """Set the timer to when the next heartbeat is due."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        if (due := self._schedule.next_due()) is not None:
            # In an empty context, because these heartbeats belong to no block.
            self._handle = self._loop.call_at(due, self._send_due, context=Context())

    def _send_due(self) -> None:
        if not (batch := self._schedule.take_due()):
            self._set()
            return
        steps = self._schedule.send_steps(batch)
        self._call = self._loop.create_task(run_async(steps), name="heartbeats")
        for each in batch:
            each.call = self._call
        self._call.add_done_callback(self._after_call)

    def _after_call(self, call: asyncio.Task[list[TimerHeartbeat]]) -> None:
        self._call = None
        for each in [] if call.cancelled() else call.result():
            self._schedule.discard(each)
            HeartbeatTimer(self._store, self._loop, alone=True).add(each)
        self._set()
