"""The columns of an execution, its history and its log, and how a row becomes a model."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, type_coerce

from ...core.errors import InvalidValue
from ...core.models import (
    AttemptRecord,
    Execution,
    ExecutionFailure,
    ExecutionStatus,
    HistoryEntry,
    LogEntry,
    LogLevel,
    ProgressInfo,
)
from ..schema.column_types import JsonText, StoredJson, UnreadableJson
from ..schema.tables import execution_history, execution_logs, executions
from ..schema.views import execution_attempts

columns = executions.c
PROGRESS = [
    columns.progress_current,
    columns.progress_total,
    columns.progress_percent,
    columns.progress_message,
]
MILLISECOND = timedelta(milliseconds=1)


def _stored(column: Column[Any]) -> ColumnElement[Any]:
    if not isinstance(column.type, JsonText):
        return column
    return type_coerce(column, StoredJson).label(column.name)


# A row has a column for each field of an execution, in order, then the rest of `progress`.
FIELDS = tuple(Execution.model_fields)
_OTHER_NAMES = {"timeout": "timeout_ms", "progress": "progress_current"}
ROW = [*(_stored(columns[_OTHER_NAMES.get(f, f)]) for f in FIELDS), *PROGRESS[1:]]
_JSON = ("payload", "result", "error", "metadata", "checkpoints")
LOG_FIELDS = tuple(LogEntry.model_fields)
LOG_ROW = [_stored(execution_logs.c[field]) for field in LOG_FIELDS]
HISTORY_FIELDS = tuple(HistoryEntry.model_fields)
HISTORY_ROW = [_stored(execution_history.c[field]) for field in HISTORY_FIELDS]
ATTEMPT_FIELDS = tuple(AttemptRecord.model_fields)
ATTEMPT_ROW = [_stored(execution_attempts.c[field]) for field in ATTEMPT_FIELDS]


def to_execution(row: Sequence[Any]) -> Execution:
    """Build an execution from a row, without the checks of the model: the schema made them."""
    fields = dict(zip(FIELDS, row, strict=False))
    for name in _JSON:
        if type(fields[name]) is UnreadableJson:
            raise _unreadable(name, fields["id"], fields[name])
    if (current := fields["progress"]) is not None:
        total, percent, message = row[-3:]
        fields["progress"] = ProgressInfo.model_construct(
            current=current, total=total, percent=float(percent), message=message
        )
    if (timeout_ms := fields["timeout"]) is not None:
        fields["timeout"] = timeout_ms * MILLISECOND
    fields["error"] = _to_failure(fields["error"])
    fields["status"] = ExecutionStatus(fields["status"])
    # As unpickling does: model_construct is slower than all of the above.
    read = Execution.__new__(Execution)
    read.__setstate__(
        {
            "__dict__": fields,
            "__pydantic_fields_set__": set(FIELDS),
            "__pydantic_extra__": None,
            "__pydantic_private__": None,
        }
    )
    return read


def to_log_entry(row: Sequence[Any]) -> LogEntry:
    """Build a log entry from a row, without the checks of the model: the schema made them."""
    fields = dict(zip(LOG_FIELDS, row, strict=True))
    if isinstance(fields["data"], UnreadableJson):
        raise _unreadable("data", fields["id"], fields["data"])
    fields["level"] = LogLevel(fields["level"])
    return LogEntry.model_construct(**fields)


def to_history_entry(row: Sequence[Any]) -> HistoryEntry:
    """Build an entry of a history from a row."""
    fields = _with_failure(zip(HISTORY_FIELDS, row, strict=True))
    for name in ("from_status", "to_status"):
        fields[name] = fields[name] and ExecutionStatus(fields[name])
    return HistoryEntry.model_construct(**fields)


def to_attempt_record(row: Sequence[Any]) -> AttemptRecord:
    """Build the record of an attempt from a row."""
    return AttemptRecord.model_construct(**_with_failure(zip(ATTEMPT_FIELDS, row, strict=True)))


def _with_failure(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(values)
    if isinstance(fields["error"], UnreadableJson):
        raise _unreadable("error", fields["execution_id"], fields["error"])
    return fields | {"error": _to_failure(fields["error"])}


def _to_failure(error: dict[str, Any] | None) -> ExecutionFailure | None:
    if error is None:
        return None
    return ExecutionFailure.model_construct(
        message=error["message"],
        code=error.get("code"),
        stack=error.get("stack"),
        retryable=error.get("retryable") is True,
    )


def _unreadable(name: str, id: str, value: UnreadableJson) -> InvalidValue:
    return InvalidValue(
        name,
        f"of {id} cannot be read by Python: {value.reason}. Correct the row with manual SQL",
    )
