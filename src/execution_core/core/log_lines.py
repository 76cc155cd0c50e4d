"""A line for an execution's log: what it is made of, and when it may be added."""

from dataclasses import dataclass
from datetime import datetime

from . import json_values, transitions, validation
from .errors import InvalidValue
from .json_values import Json
from .models import MAX_MESSAGE, Execution, LogEntry, LogLevel, replace_unstorable
from .transitions import Transition


@dataclass(frozen=True, slots=True)
class NewLogEntry:
    """A checked line that is not stored yet."""

    id: str
    execution_id: str
    level: LogLevel
    message: str
    data: Json | None
    transition: Transition
    """When it may be added; it changes nothing."""

    def apply(self, execution: Execution, now: datetime) -> LogEntry | None:
        """Return the entry that this adds to the log, or None when it may not be added."""
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


def check_log_page(id: str, limit: int, before: str | None) -> tuple[str, int, str | None]:
    """Check what a caller asks to read of a log."""
    return (
        validation.execution_id(id),
        validation.integer("limit", limit, 1, validation.MAX_PAGE),
        None if before is None else validation.cursor("before", before),
    )


def new_log_entry(
    id: str, message: str, level: str, data: object, *, attempt: int | None, max_bytes: int
) -> NewLogEntry:
    """Check what is to be logged. A message is cleaned and cut, so that it is never lost."""
    cleaned = replace_unstorable(message[:MAX_MESSAGE]) if isinstance(message, str) else message
    try:
        known = LogLevel(level)
    except ValueError:
        raise InvalidValue("level", f"must be one of {', '.join(LogLevel)}") from None
    return NewLogEntry(
        id=validation.new_id(),
        execution_id=validation.execution_id(id),
        level=known,
        message=validation.text("message", cleaned, MAX_MESSAGE),
        data=None if data is None else json_values.to_json("data", data, max_bytes),
        transition=transitions.log(attempt),
    )
