"""What the sync and the async attempt share: state, verbs, and every decision, as steps.

A verb returns what `_run` makes of its steps: the result, or a coroutine that returns it.
"""

from collections.abc import Callable, Mapping
from copy import copy
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, Generic, Self, TypeVar, cast
from weakref import ref

from ..core import transitions, validation
from ..core.errors import AttemptLost, ConcurrentUpdate, ExecutionProblem, InvalidValue
from ..core.json_values import JsonMembers
from ..core.models import Execution, ExecutionFailure, ExecutionStatus, LogLevel
from ..core.state_machine import COMPLETED, FINISHED, RETRYING, RUNNING
from ..core.steps import Steps
from ..core.store import store_within
from ..core.transitions import Transition
from . import verbs
from .attempt_log import AttemptLog
from .attempt_options import AttemptOptions
from .iteration import CheckpointedIteration
from .joined_writes import JoinedWrites
from .log_capture import ACTIVE, ActiveAttempt, innermost_active

MAX_CHUNK: Final = 1_000_000
"""The maximum number of items in a chunk."""
NoneT = TypeVar("NoneT")
TransactionT = TypeVar("TransactionT")


class AttemptState(AttemptLog, Generic[NoneT, TransactionT]):
    """The state, the verbs and the steps of one attempt (see `core.steps`)."""

    # Defined by the sync and the async attempt, as functions or as coroutine functions.
    _run: Callable[[Steps[Any]], Any]
    _capture: Callable[[str, LogLevel, str], None]
    _start_heartbeat: Callable[[timedelta], Any]
    lost: Any
    can_cancel_task = False

    result: Any = None
    """The result that the execution is completed with: any JSON value."""
    retry_after: timedelta | None = None
    """The delay before the next attempt, once this one has failed and another may follow."""
    _left = False
    _inside = False
    """Whether this came from `within`: it writes in a transaction of the caller's."""
    _active: ActiveAttempt | None = None
    _heartbeat: Any = None

    def __init__(self, store: Any, options: AttemptOptions) -> None:
        super().__init__(store, options)
        self._entered = False
        self._execution: Execution | None = None
        self._checkpoints: dict[str, Any] = {}
        self._iterated: set[str] = set()
        self._joined = JoinedWrites()

    def __repr__(self) -> str:
        which = f"{self.number} of" if self.started else "not started, of"
        name = type(self).__name__
        return f"<{name} {which} execution {self._options.id} in {self._store!r}>"

    @property
    def execution(self) -> Execution:
        """The execution as this attempt found it when it started, payload included."""
        if self._execution is None:
            raise RuntimeError("The attempt starts with its block: with manager.attempt(id) as …")
        return self._execution

    @property
    def number(self) -> int:
        """The number of this attempt, from 1: what other verbs take as `attempt=`."""
        return self.execution.attempts

    @property
    def checkpoints(self) -> Mapping[str, Any]:
        """The checkpoints as this attempt found them, and those that it has set since."""
        _ = self.execution
        return MappingProxyType(self._checkpoints)

    @property
    def started(self) -> bool:
        """Whether its block has been entered and the execution started."""
        return self._execution is not None

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

    def _has_ended_steps(self) -> Steps[bool]:
        """Return whether the attempt has ended itself, or the caller's transaction decides that."""
        ended = self._joined.ended
        if ended is None or self._joined.is_open():
            return ended is not None
        found = yield lambda: self._store.find_by_id(self._options.id)
        if found is not None and ended is COMPLETED:
            return bool(found.status is ended and found.attempts == self.number)
        if ended is RUNNING and found is not None and found.awaits_children_since:
            return True
        # After a failure, the next attempt may be running already.
        return found is None or (found.status, found.attempts) != (RUNNING, self.number)

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

    def _write_steps(self, transition: Transition) -> Steps[None]:
        if not self._options.background:
            yield from self._flush_steps()
        if (yield from self._update_steps(transition)) is None:
            raise (yield from self._loss_steps(transition))
        written = transition.values.get("checkpoints")
        if isinstance(written, JsonMembers):
            self._checkpoints |= {key: each.value for key, each in written.values.items()}

    def _update_steps(self, transition: Transition) -> Steps[ExecutionStatus | None]:
        id = self._options.id
        self._check_own_transactions()
        status: ExecutionStatus | None
        status = yield lambda: self._store.update(id, transition, returning="status")
        if self._inside and status is not None:
            self._joined.add(self._store)
        elif status in FINISHED and not self._options.joined:
            yield from verbs.end_parents(self._store, self.execution.parent_id)
        return status

    def _end_steps(self, transition: Transition) -> Steps[None]:
        """End the attempt before the end of its block."""
        yield from self._flush_steps()
        status = yield from self._update_steps(transition)
        if status is None:
            raise (yield from self._loss_steps(transition))
        self._joined.ended = status

    def _leave_steps(self) -> Steps[None]:
        yield from self._end_steps(transitions.finish_with_children(self.number))
        yield from self._update_steps(transitions.end_with_children())  # if they have finished

    def _check_own_transactions(self) -> None:
        if self._inside or self._options.joined or getattr(self._store, "shares_connection", False):
            return
        if self._joined.is_open():
            raise RuntimeError(
                f"Attempt {self.number} of execution {self._options.id} cannot write: a transaction"
                " of yours that it writes in is still open, and each would wait for the other. End"
                " the transaction first, or write in it: attempt.within(session)"
            )

    def _loss_steps(self, transition: Transition) -> Steps[ExecutionProblem]:
        """Return why nothing was written."""
        found = yield lambda: self._store.find_by_id(self._options.id)
        problem = transitions.refusal(transition, self._options.id, found)
        if isinstance(problem, ConcurrentUpdate):
            return problem
        self.lost.set()
        return AttemptLost(self._options.id, self.number, found)

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
