"""New log entries: how a request becomes one, and when it may be added."""

from dataclasses import dataclass
from datetime import datetime

from . import json_values, transitions, validation
from .errors import InvalidValue
from .json_values import Json
from .models import MAX_MESSAGE, Execution, LogEntry, LogLevel, replace_unstorable
from .transitions import Transition


@dataclass(frozen=True, slots=True)
class NewLogEntry:
    """A new log entry with checked values, not stored yet: `store.log(new)`."""

    id: str
    execution_id: str
    level: LogLevel
    message: str
    data: Json | None
    transition: Transition
    """The guard: the entry may be added if this transition applies. It changes nothing."""

    def apply(self, execution: Execution, now: datetime) -> LogEntry | None:
        """Return the entry to store, or None if it may not be added: for stores without SQL."""
        if self.transition.apply(execution, now) is None:
            return None
        return LogEntry(
            id=self.id,
            execution_id=self.execution_id,
            attempt=execution.attempts,
            logged_at=now,
            level=self.level,
            message=self.message,
            data=self.data and self.data.value,
        )


def new_log_entry(
    id: str, message: str, level: str, data: object, *, attempt: int | None, max_bytes: int
) -> NewLogEntry:
    """Check the arguments of `log` and build the new entry.

    The message is cleaned and cut instead of refused, so that no entry is lost for its text.
    """
    cleaned = replace_unstorable(message[:MAX_MESSAGE]) if isinstance(message, str) else message
    try:
        checked_level = LogLevel(level)
    except ValueError:
        raise InvalidValue("level", f"must be one of {', '.join(LogLevel)}") from None
    return NewLogEntry(
        id=validation.new_id(),
        execution_id=validation.execution_id(id),
        level=checked_level,
        message=validation.text("message", cleaned, MAX_MESSAGE),
        data=None if data is None else json_values.to_json("data", data, max_bytes),
        transition=transitions.log(attempt),
    )
