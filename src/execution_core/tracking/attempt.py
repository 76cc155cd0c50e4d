"""An attempt as a with-block that starts, completes and fails its execution."""

import threading
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Self, TypeVar

from ..core.models import LogLevel
from ..core.steps import run
from ..core.store import ExecutionStore, Transaction
from .attempt_options import AttemptOptions
from .attempt_state import AttemptState
from .chunks import Chunk
from .iteration import CheckpointedIteration
from .threads import LogThread, ThreadHeartbeat, start_heartbeats

T = TypeVar("T")


class Attempt(AttemptState[None, Transaction]):
    """One attempt at an execution: `with manager.attempt(id) as attempt: attempt.result = work()`.

    It writes only while it owns the execution. When the execution was cancelled, timed out, taken
    over or deleted, every write raises `AttemptLost`, and so does the end of a block that has not
    noticed. No write sends or returns the payload.
    """

    lost: threading.Event
    """Is set when a heartbeat or a write finds that the attempt has lost its execution."""
    _run = staticmethod(run)
    _heartbeat: ThreadHeartbeat | None

    def __init__(self, store: ExecutionStore, options: AttemptOptions) -> None:
        super().__init__(store, options)
        self.lost = threading.Event()
        self._log_thread: LogThread | None = None
        self._log_lock = threading.Lock()

    def __enter__(self) -> Self:
        self._mark_entered()
        try:
            run(self._enter_steps())
            self._begin_block()
        except BaseException as error:
            if self.started:  # ownership was lost, or a signal handler raised
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
            run(self._exit_steps(error))
        except Exception:
            raise
        except BaseException as interruption:  # a signal handler raised
            run(self._record_steps(interruption))  # changes nothing if a record was made
            raise
        finally:  # last: no sweep must take the execution while its log is being written
            if self._heartbeat is not None:
                self._heartbeat.end(wait=not self._is_blocked())
                self._heartbeat = None

    def each(
        self, items: Iterable[T], *, checkpoint: str = "last_index", every: int = 1
    ) -> Iterator[T]:
        """Iterate, resuming after the last checkpoint: `for row in attempt.each(rows): ...`.

        An item counts as done when the loop asks for the next one, so its effects must be
        committed by then: for rows in the same database, use `chunks`. After every `every` items,
        and at the end, one statement sets the checkpoint to the index of the last item done and
        updates the progress, whose total is `len(items)`, or 0 until the end if that is unknown.

        Args:
            items: the same items in the same order for every attempt. A set has no order.
            checkpoint: the key of the checkpoint.
            every: how many items are done again after a crash, at most.

        Raises:
            InvalidValue: the checkpoint holds something other than an index, the items are a set,
                or they are fewer than the checkpoint says are done.
        """
        return self._each(items, self._iteration(items, checkpoint, every))

    def _each(self, items: Iterable[T], iteration: CheckpointedIteration) -> Iterator[T]:
        remaining = iter(items)
        iteration.check_length(sum(1 for _ in islice(remaining, iteration.done)))
        for item in remaining:
            yield item
            run(self._advance_steps(iteration.item_done()))
        run(self._advance_steps(iteration.exhausted()))

    def chunks(
        self, items: Iterable[T], *, size: int = 1000, checkpoint: str = "last_index"
    ) -> Iterator[Chunk[T]]:
        """Iterate in transactions: `for chunk in attempt.chunks(rows, size=1000): ...`.

        The end of `with chunk.begin(Session) as session: ...` commits the caller's rows, the
        progress and the checkpoint together, so the next attempt resumes with the first chunk that
        was not committed: each item is done exactly once. A chunk is a list of items. `break` ends
        the loop, and what is committed stays. A chunk counts as a heartbeat.

        Args:
            items: the same items in the same order for every attempt. A set has no order.
            size: the maximum number of items in a chunk. On SQLite, other writers wait for a
                chunk, so it should take less than a second.
            checkpoint: the key of the checkpoint: the index of the last item done, as for `each`.

        Raises:
            InvalidValue: as `each`; or the attempt runs in a transaction of the caller's.
            RuntimeError: the loop asks for the next chunk although the last one is not committed.
        """
        return self._chunks(items, self._chunked_iteration(items, checkpoint, size), size)

    def _chunks(
        self, items: Iterable[T], iteration: CheckpointedIteration, size: int
    ) -> Iterator[Chunk[T]]:
        remaining = iter(items)
        iteration.check_length(sum(1 for _ in islice(remaining, iteration.done)))
        while chunk := Chunk(list(islice(remaining, size)), self, iteration):
            yield chunk
            chunk.check_committed()
        run(self._advance_steps(iteration.exhausted()))

    def _start_heartbeat(self, interval: timedelta) -> None:
        on_loss = partial(self._joined.unless_ended, self.lost.set)
        self._heartbeat = start_heartbeats(self._store, self.execution, interval, on_loss)

    def _finish_log(self) -> None:
        if self._log_thread is not None:
            self._log_thread.finish()

    def _capture(self, message: str, level: LogLevel, logger_name: str) -> None:
        entry = self._captured(message, level, logger_name)
        if not self._options.background:
            self._buffer(entry)
            return
        with self._log_lock:  # several threads of the block may log at once
            if self._log_thread is None:
                self._log_thread = LogThread(self)
            self._dropped += not self._log_thread.put(entry)
