"""Forty lines of SQL in place of the library: the statements and the row, nothing else.

The tables, the trigger and the statements are those of the library. It checks no arguments,
explains no refusals and supports one dialect at a time.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from uuid_utils.compat import uuid7

from . import PAYLOAD, RESULT

COLUMNS: Final = (
    "id, type, status, payload, result, error, attempts, max_attempts, created_at, updated_at,"
    " started_at, completed_at, deadline_at, timeout_ms, idempotency_key, fingerprint, parent_id,"
    " replay_of, metadata, checkpoints, progress_current, progress_total, progress_percent,"
    " progress_message, worker, heartbeat_at, due_at, redacted_at,"
    " awaits_children_since"
)


@dataclass(slots=True)
class Row:
    """A row of `executions`."""

    id: UUID | str
    type: str
    status: str
    payload: Any
    result: Any
    error: Any
    attempts: int
    max_attempts: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    deadline_at: datetime | None
    timeout_ms: int | None
    idempotency_key: str | None
    fingerprint: str | None
    parent_id: UUID | str | None
    replay_of: UUID | str | None
    metadata: Any
    checkpoints: Any
    progress_current: int | None
    progress_total: int | None
    progress_percent: float | None
    progress_message: str | None
    worker: str | None
    heartbeat_at: datetime | None
    due_at: datetime | None
    redacted_at: datetime | None
    awaits_children_since: datetime | None


def sql(parameter: str, now: str, not_before: str, deadline: str) -> tuple[str, str, str]:
    """Return the statements of create, start and complete for one database."""
    create = (
        "INSERT INTO executions (id, type, payload, max_attempts, created_at, updated_at)"
        f" VALUES ({', '.join([parameter] * 4)}, {now}, {now})"
        f" ON CONFLICT (idempotency_key) DO NOTHING RETURNING {COLUMNS}"
    )
    start = (
        f"UPDATE executions SET status = 'running', attempts = attempts + 1, error = NULL,"
        f" updated_at = {not_before}, started_at = {not_before}, completed_at = NULL,"
        f" deadline_at = {deadline}, worker = {parameter}, heartbeat_at = {not_before},"
        " due_at = NULL"
        f" WHERE id = {parameter} AND status IN ('pending', 'retrying')"
        f" AND attempts < max_attempts RETURNING {COLUMNS}"
    )
    complete = (
        f"UPDATE executions SET status = 'completed', result = {parameter},"
        f" updated_at = {not_before}, completed_at = {not_before}"
        f" WHERE id = {parameter} AND status = 'running' RETURNING {COLUMNS}"
    )
    return create, start, complete


POSTGRESQL: Final = sql(
    "%s",
    "statement_timestamp()",
    "greatest(statement_timestamp(), updated_at)",
    "greatest(statement_timestamp(), updated_at) + timeout_ms * interval '1 millisecond'",
)
_TIME: Final = "'%Y-%m-%d %H:%M:%f000'"
_NOW: Final = f"strftime({_TIME}, 'now')"
SQLITE: Final = sql(
    "?",
    _NOW,
    f"max({_NOW}, updated_at)",
    f"strftime({_TIME}, max({_NOW}, updated_at), (timeout_ms / 1000.0) || ' seconds')",
)

Execute = Callable[[str, tuple[Any, ...]], Row]


def lifecycle(execute: Execute, statements: tuple[str, str, str]) -> None:
    """Create, start and complete an execution."""
    create, start, complete = statements
    created = execute(create, (str(uuid7()), "ship-order", json.dumps(PAYLOAD), 3))
    execute(start, ("host-1", created.id))
    execute(complete, (json.dumps(RESULT), created.id))
