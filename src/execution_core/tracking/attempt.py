"""An attempt as a with-block, which starts, completes and fails its execution by itself."""

import threading
from collections.abc import Iterable, Iterator
from copy import copy
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..core import transitions
from ..core.log_lines import NewLogEntry
from ..core.models import ExecutionStatus, LogLevel, replace_unstorable
from ..core.store import ExecutionStore, store_within
from ..core.transitions import Transition
from .attempt_options import AttemptOptions
from .attempt_state import AttemptState
from .iteration import CheckpointedIteration
from .log_capture import ACTIVE

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session
from .threads import HeartbeatThread, LogThread

T = TypeVar("T")


class Attempt(AttemptState):
    """One attempt at an execution: `with manager.attempt(id) as attempt: attempt.result = work()`.

    What it writes, it writes only while it owns the execution. Once it does not, because that was
    cancelled, timed out, taken over or deleted, `update_progress`, `checkpoint`, `advance`,
    `heartbeat`, and the end of a block that has not noticed, raise `AttemptLost`. No write brings
    the execution back: it takes a few hundred bytes, however large the payload is.
    """

    def __init__(self, store: ExecutionStore, terms: AttemptOptions) -> None:
        super().__init__(terms)
        self._store = store
        self._beating: HeartbeatThread | None = None
        self._logging: LogThread | None = None
        self._logging_lock = threading.Lock()

    def __enter__(self) -> Self:
        self._enter()
        try:
            self._start()
            self._begin_block()
        except BaseException as error:
            if self.started:  # and then a signal's handler raised, or it was lost
                self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._end_block()
            self._log_all()
            if error is None:
                self._end()
            else:
                self._record(error)
        except Exception:
            raise
        except BaseException as interruption:
            self._record(interruption)  # which changes nothing if the first record was made
            raise
        finally:
            if self._beating is not None:
                self._beating.stop()

    def update_progress(self, current: int, total: int, *, message: str | None = None) -> None:
        """Replace the progress: `attempt.update_progress(50, 100, message="half way")`.

        A total of 0 means that it is unknown.

        Raises:
            AttemptLost: the execution is not this attempt's any more.
        """
        self._write(self._progress(current, total, message))

    def checkpoint(self, key: str, value: Any) -> None:
        """Set one checkpoint, any JSON value: `attempt.checkpoint("last_index", 49)`.

        Raises:
            AttemptLost: the execution is not this attempt's any more.
        """
        self._write(self._checkpoint(key, value))

    def advance(
        self, current: int, total: int, *, key: str, value: Any, message: str | None = None
    ) -> None:
        """Replace the progress and set a checkpoint: `attempt.advance(50, 100, key="k", value=49)`.

        Raises:
            AttemptLost: the execution is not this attempt's any more.
        """
        self._write(self._advance(current, total, key, value, message))

    def heartbeat(self) -> None:
        """Give a sign of life: `attempt.heartbeat()`.

        Raises:
            AttemptLost: the execution is not this attempt's any more.
        """
        self._write(self._heartbeat())

    def log(self, message: str, *, level: LogLevel | str = LogLevel.INFO, data: Any = None) -> None:
        """Add a line to the log: `attempt.log("skipped a row", level="warning", data={"n": 7})`.

        For records of `logging`, see `ExecutionLogHandler`.

        Raises:
            AttemptLost: the execution is not this attempt's any more.
        """
        new = self._line(message, level, data)
        if self._store.log(new) is None:
            raise self._lost(new.transition, self._store.find_by_id(self._terms.id))

    def each(
        self, items: Iterable[T], *, checkpoint: str = "last_index", every: int = 1
    ) -> Iterator[T]:
        """Go on behind the checkpoint: `for row in attempt.each(rows, every=100): load(row)`.

        An item is done when the loop comes back for the next one. After every `every` of them, and
        at the end, one statement sets the checkpoint to the index of the last one done and reports
        the progress, whose total is `len(items)`; 0 until the end for what has no length.

        Args:
            items: the same ones in the same order for every attempt.
            checkpoint: the key of the checkpoint.
            every: how many items at most are done again after a crash.

        Raises:
            AttemptLost: the execution is not this attempt's any more.
            InvalidValue: the checkpoint holds no index.
        """
        return self._each(items, self._new_iteration(items, checkpoint, every))

    def within(self, connection_or_session: "Connection | Session | scoped_session[Any]") -> Self:
        """Write in the caller's transaction: `attempt.within(session).checkpoint("done", 7)`.

        What is written through the attempt that this returns commits or rolls back with the
        caller's own rows; its `checkpoints` are its own. The block itself stays as it is.

        Raises:
            InvalidValue: it is neither a Connection nor a Session.
            NotImplementedError: the store has no `within`.
        """
        inside = copy(self)
        inside._store = store_within(self._store, connection_or_session)  # noqa: SLF001 - a copy of its own
        inside._checkpoints = dict(self._checkpoints)  # noqa: SLF001
        inside._entered = True  # noqa: SLF001 - it has no block of its own
        return inside

    def _each(self, items: Iterable[T], iteration: CheckpointedIteration) -> Iterator[T]:
        for item in islice(items, iteration.done, None):
            yield item
            if iteration.item_done():
                self.advance(**iteration.progress_args())
        if iteration.exhausted():
            self.advance(**iteration.progress_args())

    def _start(self) -> None:
        id, start = self._terms.id, self._terms.start
        execution = self._terms.started or self._store.update(id, start)
        if execution is None:
            raise transitions.refusal(start, id, self._store.find_by_id(id))
        self._own(execution)
        if self._terms.started:
            self.heartbeat()  # it may have been taken since it was claimed
        if self._terms.heartbeat is not None:
            self._beating = HeartbeatThread(self, self._terms.heartbeat)

    def _write(self, transition: Transition) -> None:
        self._log_kept()
        if self._write_status(transition) is None:
            raise self._lost(transition, self._store.find_by_id(self._terms.id))
        self._wrote(transition)

    def _write_status(self, transition: Transition) -> ExecutionStatus | None:
        status: ExecutionStatus | None = self._store.update(
            self._terms.id, transition, returning="status"
        )
        return status

    def _end(self) -> None:
        try:
            transition = self._complete()
        except Exception as error:  # a result that cannot be stored
            self._record(error)
            raise
        self._write(transition)

    def _record(self, error: BaseException) -> None:
        """Record why the block was left. Whatever comes of that, the error itself goes on."""
        try:
            if self._is_told(error):
                return
            transition = self._fail(error)
            self._failed(transition, self._write_status(transition))
        except Exception:  # noqa: BLE001 - the block's own error must not be hidden
            self._not_recorded()

    def _record_logged(self, message: str, level: LogLevel, logger_name: str) -> None:
        new = self._line(message, level, {"logger": replace_unstorable(logger_name)})
        if not self._terms.alone:
            self._keep(new)
            return
        with self._logging_lock:  # its threads may log at once
            if self._logging is None:
                self._logging = LogThread(self)
            self._dropped += not self._logging.put(new)

    def _log_all(self) -> None:
        if self._logging is not None:
            self._logging.finish()
        self._keep_what_was_dropped()
        self._log_kept()

    def _log_kept(self) -> None:
        """Write what could not be written in the background."""
        if not self._logged:
            return
        current = ACTIVE.get()
        ACTIVE.set(None)  # writing may be logged as well
        try:
            while self._logged and self._log_one(self._logged.popleft()):
                pass
        finally:
            ACTIVE.set(current)

    def _log_one(self, line: NewLogEntry) -> bool:
        """Write a line of `logging`; False when that failed."""
        try:
            self._store.log(line)
        except Exception:  # noqa: BLE001 - what is said of the work must not end it
            self._not_logged()
            return False
        return True

    def _beat(self) -> bool:
        """Beat by itself; False when there is no use in going on."""
        try:
            return self._write_status(self._heartbeat()) is not None
        except Exception:  # noqa: BLE001 - the next one may be heard
            self._not_beaten()
            return True
