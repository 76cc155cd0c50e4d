"""The heartbeats of the attempts of a store: which are due, and the steps that send them.

A thread (`threads`) or the timer of an event loop (`timers`) carries out the steps.
"""

import logging
from collections.abc import Callable, Collection
from datetime import timedelta
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar
from weakref import ref

from ..core import transitions
from ..core.errors import ConcurrentUpdate
from ..core.models import Execution
from ..core.steps import Steps
from ..core.validation import new_id

MAX_BATCH: Final = 1_000
"""How many heartbeats one call sends: it locks their rows until it ends."""

Key = tuple[str, int]
"""The id of an execution and the number of an attempt."""
logger: Final = logging.getLogger("execution_core")


class Heartbeat:
    """The heartbeats of one attempt, which alone refers to this: they end when it is collected."""

    due = 0.0
    suspect = False
    """Whether a call for several attempts failed, this one among them: the next is for it alone."""

    is_leaving = False
    """Whether its block is being left: then the attempt may have ended without being lost."""

    def __init__(
        self, execution: Execution, interval: timedelta, on_loss: Callable[[], object]
    ) -> None:
        self.key: Key = (execution.id, execution.attempts)
        self.on_loss = on_loss
        """What to call when the attempt is found lost: it must not refer to the attempt."""
        self.seconds = interval.total_seconds()


HeartbeatT = TypeVar("HeartbeatT", bound=Heartbeat)


class HeartbeatSchedule(Generic[HeartbeatT]):
    """When the heartbeats of attempts of one store are due.

    Those with the same interval are due at the same times, so that one call sends all of them.
    With `alone`, it is for one attempt, and does not use `heartbeat_many`.
    """

    def __init__(self, store: Any, clock: Callable[[], float], *, alone: bool = False) -> None:
        self._store, self._clock, self._alone = store, clock, alone
        self._began = clock()
        # Not a WeakSet, which another thread may change while it is read.
        self._all = set[ref[HeartbeatT]]()

    def __len__(self) -> int:
        return len(self._all)

    def add(self, heartbeat: HeartbeatT) -> None:
        """Add an attempt; its first heartbeat is due within its interval."""
        self._put_off(heartbeat)
        self._all.add(ref(heartbeat))

    def discard(self, heartbeat: HeartbeatT) -> None:
        """Send no further heartbeat of an attempt."""
        self._all.discard(ref(heartbeat))

    def next_due(self) -> float | None:
        """Return when the next heartbeat is due, or None if no attempt is left."""
        return min((each.due for each in self._alive()), default=None)

    def take_due(self) -> list[HeartbeatT]:
        """Return what the next call is to send; an empty list if nothing is due."""
        now = self._clock()
        due = sorted((e for e in self._alive() if e.due <= now), key=attrgetter("due"))
        batch = [each for each in due if not each.suspect][:MAX_BATCH] or due[:1]
        for each in batch:
            self._put_off(each)
        return batch

    def send_steps(self, batch: list[HeartbeatT]) -> Steps[list[HeartbeatT]]:
        """Make the call, and remove the attempts that are lost.

        Return the attempt of a call that failed although the store answers: the other attempts
        must not wait for its calls.
        """
        try:
            running = yield from self._call_steps([each.key for each in batch])
        except Exception as error:  # noqa: BLE001 - the next heartbeat may succeed
            return (yield from self._failure_steps(batch, error))
        for each in batch:
            each.suspect = False
            if each.key not in running:
                self.discard(each)
                if not each.is_leaving:
                    each.on_loss()
        return []

    def _call_steps(self, keys: list[Key]) -> Steps[Collection[Key]]:
        """Send heartbeats; return the attempts that still run."""
        if not self._alone:
            return set((yield lambda: self._store.heartbeat_many(keys)))
        ((id, number),) = keys
        heartbeat = transitions.heartbeat(number, skip_locked=True)
        if (yield lambda: self._store.update(id, heartbeat, returning="status")) is None:
            found = yield lambda: self._store.find_by_id(id)
            # While the row is locked, a sweep skips it as well.
            if not isinstance(transitions.refusal(heartbeat, id, found), ConcurrentUpdate):
                return []
        return keys

    def _failure_steps(self, batch: list[HeartbeatT], error: Exception) -> Steps[list[HeartbeatT]]:
        answers = not self._alone and (yield from self._probe_steps())
        if answers and len(batch) > 1:  # perhaps because of one row: send each alone, at once
            for each in batch:
                each.suspect, each.due = True, self._began
            return []
        id, number = batch[0].key
        others = f" and of {len(batch) - 1} others" if len(batch) > 1 else ""
        message = "A heartbeat of attempt %d of execution %s%s could not be recorded"
        logger.warning(message, number, id, others, exc_info=error)
        if answers:
            return [each for each in batch if ref(each) in self._all]
        for each in self._alive():  # the store is down, so no row is bad
            each.suspect = False
        return []

    def _probe_steps(self) -> Steps[bool]:
        """Return whether a call succeeds that sends the heartbeat of no attempt."""
        try:
            yield lambda: self._store.heartbeat_many([(new_id(), 1)])
        except Exception:  # noqa: BLE001 - the answer is no
            return False
        return True

    def _alive(self) -> list[HeartbeatT]:
        """Return the heartbeats of the attempts that have not been collected."""
        alive = [each for each in (known() for known in self._all) if each is not None]
        if len(alive) < len(self._all):
            self._all = {ref(each) for each in alive}
        return alive

    def _put_off(self, heartbeat: HeartbeatT) -> None:
        periods = (self._clock() - self._began) // heartbeat.seconds
        heartbeat.due = self._began + (periods + 1) * heartbeat.seconds
