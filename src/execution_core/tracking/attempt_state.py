"""What both colours of an attempt decide without asking a store: what to write, and when."""

import logging
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final
from weakref import ref

from ..core import transitions
from ..core.errors import AttemptLost, ConcurrentUpdate, ExecutionProblem, InvalidValue
from ..core.json_values import JsonMember
from ..core.log_lines import NewLogEntry, new_log_entry
from ..core.models import Execution, ExecutionFailure, ExecutionStatus, LogLevel
from ..core.state_machine import RETRYING
from ..core.transitions import Transition
from .attempt_options import AttemptOptions
from .iteration import CheckpointedIteration
from .log_capture import ACTIVE, ActiveAttempt, innermost_active

INTERRUPTED: Final = "interrupted"
"""The code of the failure of a block that was left because its process or its task ends."""

MAX_BUFFERED_ENTRIES: Final = 10_000
"""How many lines of `logging` may wait to be written; what comes then is dropped and counted."""

logger: Final = logging.getLogger("execution_core")


class AttemptState:
    """An attempt's hold on its execution: what it knows of it, and what it would write."""

    result: Any = None
    """What the execution is to be completed with: any JSON value."""
    retry_after: timedelta | None = None
    """How long the next attempt is to wait, once this one has failed and may be followed by one."""
    _left = False
    """Whether its block has been left."""
    _place: ActiveAttempt | None = None
    """Its block, once it has begun."""

    def __init__(self, terms: AttemptOptions) -> None:
        self._terms = terms
        self._entered = False
        self._execution: Execution | None = None
        self._checkpoints: dict[str, Any] = {}
        self._iterated: set[str] = set()
        self._logged: deque[NewLogEntry] = deque()
        self._dropped = 0

    @property
    def execution(self) -> Execution:
        """The execution as this attempt found it when it started, payload included."""
        if self._execution is None:
            raise RuntimeError("The attempt starts with its block: with manager.attempt(id) as …")
        return self._execution

    @property
    def number(self) -> int:
        """Which attempt this is, from 1 on: what other verbs take as `attempt=`."""
        return self.execution.attempts

    @property
    def checkpoints(self) -> Mapping[str, Any]:
        """The checkpoints as this attempt found them, and what it has set since."""
        _ = self.execution
        return MappingProxyType(self._checkpoints)

    @property
    def started(self) -> bool:
        """Whether its block has been entered, with the execution started."""
        return self._execution is not None

    def _enter(self) -> None:
        if self._entered:
            raise RuntimeError("An attempt has one block: ask the manager for another attempt")
        self._entered = True

    def _own(self, execution: Execution) -> None:
        self._execution = execution
        self._checkpoints = dict(execution.checkpoints)

    def _begin_block(self) -> None:
        """Take what is logged from now on."""
        self._place = ActiveAttempt(ref(self), innermost_active())
        ACTIVE.set(self._place)

    def _end_block(self) -> None:
        """Leave what is logged from now on to the block around this one."""
        self._left = True
        if ACTIVE.get() is self._place:  # else it was entered elsewhere, as in a generator
            ACTIVE.set(innermost_active())

    def _line(self, message: str, level: LogLevel | str, data: object) -> NewLogEntry:
        return new_log_entry(
            self._terms.id,
            message,
            level,
            data,
            attempt=self.number,
            max_bytes=self._terms.max_bytes,
        )

    def _keep(self, line: NewLogEntry) -> None:
        if len(self._logged) < MAX_BUFFERED_ENTRIES:
            self._logged.append(line)
        else:
            self._dropped += 1

    def _keep_what_was_dropped(self) -> None:
        """Keep how many lines were dropped, as the last one."""
        if self._dropped:
            limit = f"{MAX_BUFFERED_ENTRIES} were waiting to be written"
            said = f"{self._dropped} records were dropped: {limit}"
            self._logged.append(self._line(said, LogLevel.WARNING, {"logger": logger.name}))

    def _record_logged(self, message: str, level: LogLevel, logger_name: str) -> None:
        """Keep what `logging` brought until it can be written."""
        raise NotImplementedError

    def _wrote(self, transition: Transition) -> None:
        entry = transition.values.get("checkpoints")
        if isinstance(entry, JsonMember):
            self._checkpoints[entry.key] = entry.value.value

    def _new_iteration(self, items: object, key: str, every: int) -> "CheckpointedIteration":
        iteration = CheckpointedIteration(items, key, every, self.checkpoints)
        if key in self._iterated:  # what one loop has done, the other would skip
            raise InvalidValue("checkpoint", f"{key!r} is another loop's: give each its own")
        self._iterated.add(key)
        return iteration

    def _lost(self, transition: Transition, found: Execution | None) -> ExecutionProblem:
        """Say why nothing was written, from the execution that was found afterwards."""
        problem = transitions.refusal(transition, self._terms.id, found)
        if isinstance(problem, ConcurrentUpdate):
            return problem
        return AttemptLost(self._terms.id, self.number, found)

    def _is_told(self, error: BaseException) -> bool:
        """Tell whether an error is this attempt's own loss, of which nothing is to be recorded."""
        return type(error) is AttemptLost and (error.execution_id, error.attempt) == (
            self._terms.id,
            self.number,
        )

    def _progress(self, current: int, total: int, message: str | None) -> Transition:
        return transitions.update_progress(current, total, message, None, self.number)

    def _checkpoint(self, key: str, value: object) -> Transition:
        return transitions.checkpoint(key, value, self.number, self._terms.max_bytes)

    def _advance(
        self, current: int, total: int, key: str, value: object, message: str | None
    ) -> Transition:
        progress = self._progress(current, total, message)
        return transitions.advance(progress, self._checkpoint(key, value))

    def _heartbeat(self) -> Transition:
        return transitions.heartbeat(self.number)

    def _complete(self) -> Transition:
        return transitions.complete(self.result, self.number, self._terms.max_bytes)

    def _fail(self, error: BaseException) -> Transition:
        """Describe why the block was left."""
        if not isinstance(error, Exception):  # KeyboardInterrupt, SystemExit, CancelledError, …
            told = ExecutionFailure.from_exception(error).model_copy(update={"code": INTERRUPTED})
            return transitions.fail(told, True, None, self.number)  # noqa: FBT003 - retryable
        retryable = self._retries(error)
        backoff = self._terms.backoff
        delay = backoff.delay(self.number) if backoff and retryable else None
        return transitions.fail(error, retryable, delay, self.number)

    def _retries(self, error: BaseException) -> bool:
        """Tell as an `except` would; and of a group, whether it would of everything in it."""
        if any(kind in self._terms.retry_on for kind in type(error).__mro__):
            return True
        return isinstance(error, BaseExceptionGroup) and all(map(self._retries, error.exceptions))

    def _failed(self, transition: Transition, status: ExecutionStatus | None) -> None:
        if status is RETRYING:
            delay = transition.values["retry_after"]
            self.retry_after = delay if isinstance(delay, timedelta) else timedelta(0)

    def _not_recorded(self) -> None:
        logger.warning(
            "Attempt %d of execution %s failed, and that could not be recorded",
            *(self.number, self._terms.id),
            exc_info=True,
        )

    def _not_logged(self) -> None:
        logger.warning(
            "Attempt %d of execution %s could not add to its log",
            *(self.number, self._terms.id),
            exc_info=True,
        )

    def _not_beaten(self) -> None:
        logger.warning(
            "No heartbeat of attempt %d of execution %s could be recorded",
            *(self.number, self._terms.id),
            exc_info=True,
        )
