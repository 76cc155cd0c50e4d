"""What the sync and the async attempt share: state, verbs, and every decision, as steps.

A verb returns what `_run` makes of its steps: the result, or a coroutine that returns it.
"""

from collections.abc import Callable
from copy import copy
from datetime import timedelta
from typing import Any, Final, Generic, Self, TypeVar, cast
from weakref import ref

from ..core import transitions, validation
from ..core.errors import AttemptLost, InvalidValue
from ..core.models import ExecutionFailure, LogLevel
from ..core.state_machine import RETRYING
from ..core.steps import Steps
from ..core.store import store_within
from ..core.transitions import Transition
from .attempt_options import AttemptOptions
from .attempt_writes import AttemptWrites
from .iteration import CheckpointedIteration
from .log_capture import ACTIVE, ActiveAttempt, innermost_active

MAX_CHUNK: Final = 1_000_000
"""The maximum number of items in a chunk."""
NoneT = TypeVar("NoneT")
TransactionT = TypeVar("TransactionT")


class AttemptState(AttemptWrites, Generic[NoneT, TransactionT]):
    """The state, the verbs and the steps of one attempt (see `core.steps`)."""

    # Defined by the sync and the async attempt, as functions or as coroutine functions.
    _run: Callable[[Steps[Any]], Any]
    _capture: Callable[[str, LogLevel, str], None]
    _start_heartbeat: Callable[[timedelta], Any]
    can_cancel_task = False

    result: Any = None
    """The result that the execution is completed with: any JSON value."""
    retry_after: timedelta | None = None
    """The delay before the next attempt, once this one has failed and another may follow."""
    _left = False
    _active: ActiveAttempt | None = None
    _heartbeat: Any = None

    def __init__(self, store: Any, options: AttemptOptions) -> None:
        super().__init__(store, options)
        self._entered = False
        self._iterated: set[str] = set()

    def __repr__(self) -> str:
        which = f"{self.number} of" if self.started else "not started, of"
        name = type(self).__name__
        return f"<{name} {which} execution {self._options.id} in {self._store!r}>"

    def update_progress(self, current: int, total: int, *, message: str | None = None) -> NoneT:
        """Replace the progress: `attempt.update_progress(50, 100, message="half way")`.

        Args:
            current: how many units are done.
            total: how many units there are; 0 while that is unknown.
            message: a text for readers, up to 10,000 characters.
        """
        return self._write(self._progress(current, total, message))

    def checkpoint(self, key: str, value: Any) -> NoneT:
        """Set one checkpoint: `attempt.checkpoint("last_index", 49)`.

        The key has 1 to 255 characters. The value, any JSON value, replaces the old one.
        """
        return self._write(self._checkpoint(key, value))

    def advance(
        self, current: int, total: int, *, key: str, value: Any, message: str | None = None
    ) -> NoneT:
        """Update progress and a checkpoint together: `attempt.advance(5, 9, key="i", value=4)`.

        As `update_progress` and `checkpoint` do, with their arguments, in one statement.
        """
        return self._write(self._advance(current, total, key, value, message))

    def heartbeat(self) -> NoneT:
        """Show that the attempt is alive: `attempt.heartbeat()`."""
        return self._write(transitions.heartbeat(self.number))

    def log(
        self, message: str, *, level: LogLevel | str = LogLevel.INFO, data: Any = None
    ) -> NoneT:
        """Add an entry to the log: `attempt.log("skipped a row", level="warning")`.

        `ExecutionLogHandler` does this for the records of `logging`.

        Args:
            message: the text; characters that cannot be stored are replaced, and it is cut after
                10,000 characters.
            level: debug, info, warning, error or critical.
            data: any JSON value.
        """
        return cast("NoneT", self._run(self._log_steps(self._entry(message, level, data))))

    def complete(self, result: Any = None) -> NoneT:
        """Complete the execution now, not at the end of the block: `attempt.complete({"sent": 3})`.

        The block then ends without another write. `attempt.within(session).complete(...)` commits
        with the caller's rows. If that transaction rolls back, the attempt is still running, and
        the end of the block completes or fails it as usual. If it is still open when the block
        ends, nothing is recorded: the caller's commit decides.

        Args:
            result: any JSON value.
        """
        transition = transitions.complete(result, self.number, self._options.max_bytes)
        return cast("NoneT", self._run(self._end_steps(transition)))

    def fail(
        self,
        error: ExecutionFailure | BaseException | str,
        *,
        retryable: bool | None = None,
        retry_after: timedelta | None = None,
    ) -> NoneT:
        """Fail the attempt now, without an exception: `attempt.fail("no such customer")`.

        The block then ends without another write, as after `complete`.

        Args:
            error: an `ExecutionFailure`, an exception or a text.
            retryable: whether another attempt may help; overrides `error.retryable`.
            retry_after: the delay before `claim` may start it; implies `retryable`.
        """
        transition = transitions.fail(error, retryable, retry_after, self.number)
        return cast("NoneT", self._run(self._end_steps(transition)))

    def finish_with_children(self) -> NoneT:
        """Let the children end the execution: `attempt.finish_with_children()`.

        The block then ends without another write, and the execution stays running until none of
        its children is live. See `manager.finish_with_children`.
        """
        return cast("NoneT", self._run(self._leave_steps()))

    def within(self, transaction: TransactionT) -> Self:
        """Write in the caller's transaction: `attempt.within(session).checkpoint("done", 7)`.

        Writes through the returned attempt commit or roll back with the caller's own rows. It has
        checkpoints of its own. While the transaction is open, the attempt itself cannot write.

        Args:
            transaction: an SQLAlchemy Connection or Session; with asyncio AsyncConnection or
                AsyncSession.

        Raises:
            InvalidValue: it is neither.
            NotImplementedError: the store cannot join a transaction.
        """
        inside = copy(self)
        own = {"_store": store_within(self._store, transaction), "_entered": True, "_inside": True}
        # What holds a heartbeat keeps it alive: that is the attempt of the block alone.
        vars(inside).update(own, _checkpoints=dict(self._checkpoints), _heartbeat=None)
        return inside

    # --- the block ---

    def _mark_entered(self) -> None:
        if self._entered:
            raise RuntimeError("An attempt has one block: ask the manager for another attempt")
        self._entered = True

    def _enter_steps(self) -> Steps[None]:
        id, start = self._options.id, self._options.start
        execution = self._options.started or (yield lambda: self._store.update(id, start))
        if execution is None:
            raise transitions.refusal(start, id, (yield lambda: self._store.find_by_id(id)))
        self._execution = execution
        self._checkpoints = dict(execution.checkpoints)
        if self._options.started:  # another attempt may have taken over since the claim
            yield from self._write_steps(transitions.heartbeat(self.number))
        if (interval := self._options.heartbeat) is not None:
            yield lambda: self._start_heartbeat(interval)

    def _exit_steps(self, error: BaseException | None) -> Steps[None]:
        self._end_block()
        if self._is_blocked():  # by a caller who waits for the end of the block
            self._warn("The log of attempt %d of execution %s may lack entries: see `within`")
        else:
            yield self._finish_log
            self._report_dropped()
            yield from self._flush_steps()
        if (yield from self._has_ended_steps()):
            return
        if error is not None:
            yield from self._record_steps(error)
            return
        try:
            max_bytes = self._options.max_bytes
            transition = transitions.complete(self.result, self.number, max_bytes)
        except Exception as problem:  # the result cannot be stored
            yield from self._record_steps(problem)
            raise
        yield from self._write_steps(transition)

    def _record_steps(self, error: BaseException) -> Steps[None]:
        """Record why the block was left; a failure to do so is logged, not raised."""
        try:
            lost = (error.execution_id, error.attempt) if type(error) is AttemptLost else None
            if lost == (self._options.id, self.number):  # there is nothing to record
                return
            transition = self._options.failure(error, self.number)
            if (yield from self._update_steps(transition)) is RETRYING:
                delay = transition.values["retry_after"]
                self.retry_after = delay if isinstance(delay, timedelta) else timedelta(0)
        except Exception:  # noqa: BLE001 - the error of the block must not be hidden
            self._warn("The failure of attempt %d of execution %s could not be recorded")

    def _begin_block(self) -> None:
        """Capture log records from now on."""
        self._active = ActiveAttempt(ref(self), innermost_active())
        ACTIVE.set(self._active)

    def _end_block(self) -> None:
        """Leave further log records to the block around this one."""
        self._left = True
        if self._heartbeat is not None:
            self._heartbeat.is_leaving = True
        if ACTIVE.get() is self._active:  # not so if the block was entered in another context
            ACTIVE.set(innermost_active())

    # --- writes ---

    def _write(self, transition: Transition) -> NoneT:
        return cast("NoneT", self._run(self._write_steps(transition)))

    def _advance_steps(self, position: dict[str, Any] | None) -> Steps[None]:
        if position is not None:
            yield from self._write_steps(self._advance(**position))

    # --- the transitions of the block ---

    def _progress(self, current: int, total: int, message: str | None) -> Transition:
        return transitions.update_progress(current, total, message, None, self.number)

    def _checkpoint(self, key: str, value: object) -> Transition:
        return transitions.checkpoint(key, value, self.number, self._options.max_bytes)

    def _advance(
        self, current: int, total: int, key: str, value: object, message: str | None = None
    ) -> Transition:
        progress = self._progress(current, total, message)
        return transitions.advance(progress, self._checkpoint(key, value))

    def _iteration(self, items: object, key: str, every: int) -> CheckpointedIteration:
        iteration = CheckpointedIteration(items, key, every, self.checkpoints)
        if key in self._iterated:  # one loop would skip what the other has done
            raise InvalidValue("checkpoint", f"{key!r} belongs to another loop of this attempt")
        self._iterated.add(key)
        return iteration

    def _chunked_iteration(self, items: object, key: str, size: int) -> CheckpointedIteration:
        if self._inside or self._options.joined:
            raise InvalidValue("chunks", "cannot run in your transaction: each has one of its own")
        return self._iteration(items, key, validation.integer("size", size, 1, MAX_CHUNK))
