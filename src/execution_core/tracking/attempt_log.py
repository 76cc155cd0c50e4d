"""The log of an attempt, as steps: the entries of its block, and captured records."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..core.errors import ExecutionProblem
from ..core.log_lines import NewLogEntry, new_log_entry
from ..core.models import LogLevel, replace_unstorable
from ..core.steps import Steps
from ..core.transitions import Transition
from .attempt_options import AttemptOptions
from .log_capture import ACTIVE

MAX_BUFFERED_ENTRIES: Final = 10_000
"""How many captured log records may wait to be written; further ones are dropped and counted."""

logger: Final = logging.getLogger("execution_core")


class AttemptLog:
    """The part of an attempt that writes its log."""

    # Defined by the attempt.
    number: Any
    _loss_steps: Callable[[Transition], Steps[ExecutionProblem]]
    _is_blocked: Callable[[], bool]
    _check_own_transactions: Callable[[], None]
    """Raise if a write would wait for a transaction in which this attempt has written."""
    _finish_log: Callable[[], Any]
    """Wait until the background has written the captured records."""

    def __init__(self, store: Any, options: AttemptOptions) -> None:
        self._store = store
        self._options = options
        self._entries: deque[NewLogEntry] = deque()
        self._dropped = 0

    def _log_steps(self, new: NewLogEntry) -> Steps[None]:
        if self._is_blocked():
            self._check_own_transactions()
        if (yield lambda: self._store.log(new)) is None:
            raise (yield from self._loss_steps(new.transition))

    def _flush_steps(self) -> Steps[None]:
        """Write the captured records that wait."""
        if not self._entries:
            return
        active = ACTIVE.get()
        ACTIVE.set(None)  # the write may itself be logged
        try:
            while self._entries and (yield from self._write_entry_steps(self._entries.popleft())):
                pass
        finally:
            ACTIVE.set(active)

    def _write_entry_steps(self, entry: NewLogEntry) -> Steps[bool]:
        """Write a captured record; return whether that succeeded."""
        try:
            yield lambda: self._store.log(entry)
        except Exception:  # noqa: BLE001 - a failure to log must not end the work
            self._warn("Attempt %d of execution %s could not add to its log")
            return False
        return True

    def _entry(self, message: str, level: LogLevel | str, data: object) -> NewLogEntry:
        id, max_bytes = self._options.id, self._options.max_bytes
        return new_log_entry(id, message, level, data, attempt=self.number, max_bytes=max_bytes)

    def _captured(self, message: str, level: LogLevel, logger_name: str) -> NewLogEntry:
        return self._entry(message, level, {"logger": replace_unstorable(logger_name)})

    def _buffer(self, entry: NewLogEntry) -> None:
        if len(self._entries) < MAX_BUFFERED_ENTRIES:
            self._entries.append(entry)
        else:
            self._dropped += 1

    def _report_dropped(self) -> None:
        """Add how many records were dropped, as the last entry."""
        if self._dropped:
            limit = f"{MAX_BUFFERED_ENTRIES} were waiting to be written"
            message = f"{self._dropped} records were dropped: {limit}"
            self._entries.append(self._captured(message, LogLevel.WARNING, logger.name))

    def _warn(self, message: str) -> None:
        logger.warning(message, self.number, self._options.id, exc_info=True)
