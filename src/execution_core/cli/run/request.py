"""Which execution `run` is about: that of a key or of an id, or a new one."""

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from ...core.errors import (
    AlreadyRunning,
    ExecutionNotFound,
    ExecutionProblem,
    IdempotencyConflict,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
)
from ...core.models import Execution
from ...core.state_machine import CANCELLED, COMPLETED, LIVE, RUNNING, STALLED_ERROR
from ...sql.schema.tables import executions
from .. import queries
from ..database import Database
from ..output import format_cell, format_duration, mask_passwords, shorten
from ..streams import write_warning
from .exit_codes import REFUSED, RUNNING_ELSEWHERE


@dataclass(frozen=True, kw_only=True)
class Request:
    """Find or create the execution: `Request(id=…, …).find(database)`."""

    id: str | None
    """An existing execution; None to use the key, or to create one."""
    new_execution: Mapping[str, Any]
    """The arguments of `manager.create`."""
    again: bool
    """Whether to allow an attempt although the execution of the key has ended."""
    stalled_after: timedelta | None
    actor: str | None
    """Who allows another attempt, for the history."""

    def find(self, database: Database) -> Execution:
        """Return the execution whose attempt is to be made."""
        execution = self._create(database) if self.id is None else self._get(database, self.id)
        execution = self._sweep(database, execution)
        return self._reopen(database, execution) if self.again else execution

    def refuse(self, database: Database, execution: Execution) -> tuple[int, str] | None:
        """Return the exit code and the reason why no attempt is to be made; None if one is."""
        id, ended = execution.id, format_cell(execution.completed_at)
        again = "add --again, once, in a shell"
        if self.id is not None:
            run = database.command("run --id NEW")
            again = f"{database.command(f'replay {id}')}, and then {run}: NEW is the id it prints"
        if execution.status is RUNNING:
            return RUNNING_ELSEWHERE, self._describe_running(execution)
        if execution.status in (COMPLETED, CANCELLED):
            return 0 if execution.status is COMPLETED else REFUSED, (
                f"Execution {id} was {execution.status} at {ended}: the command was not run. To run"
                f" it again: {again}"
            )
        if execution.attempts < execution.max_attempts:
            return None
        if self.id is not None:
            retry = database.command(f"retry {id} --extra-attempts 1")
            again = f"{retry}, and then this command"
        status = execution.status.replace("_", " ")
        return REFUSED, (
            f"{MaxRetriesExceeded.code}: Execution {id} {status} at {ended} and has used its"
            f" {execution.max_attempts} attempt{'s'[: execution.max_attempts > 1]}: the command was"
            f" not run. To run it again: {again}"
        )

    def describe_conflict(self, database: Database, conflict: IdempotencyConflict) -> str:
        """Return why the key is refused, with the command that it belongs to."""
        id, differs = conflict.execution_id, conflict.differs.replace("payload", "command")
        with suppress(ExecutionProblem, SQLAlchemyError):
            words = shlex.join(stored_command(database.manager.get(id)))
            recorded = shorten(mask_passwords(words), 200)
            differs += f" ({recorded})" if "command" in differs else ""
        return (
            f"{conflict.code}: The key belongs to execution {id}, which has another {differs}:"
            f" the command was not run. Use another key, or --id {id} instead of the key"
        )

    def _describe_running(self, execution: Execution) -> str:
        """Return who runs the execution, and what to do if that process is dead."""
        silent = format_duration(round(seconds_silent(execution)))
        worker = f", worker {execution.worker!r}" if execution.worker else ""
        advice = "If its worker is dead, run this command with --stalled-after"
        if self.stalled_after is not None:
            limit = format_duration(self.stalled_after.total_seconds())
            advice = f"It can be taken over when it has been silent for {limit}"
        return (
            f"{AlreadyRunning.code}: Execution {execution.id} is already running elsewhere: attempt"
            f" {execution.attempts}{worker}. Its last heartbeat was {silent} ago. {advice}"
        )

    def _get(self, database: Database, id: str) -> Execution:
        return database.manager.get(database.resolve_id(id))

    def _create(self, database: Database) -> Execution:
        try:
            return database.manager.create(**self.new_execution)
        except ExecutionNotFound:  # that of the environment is of another database, or was deleted
            return database.manager.create(**{**self.new_execution, "parent_id": None})

    def _sweep(self, database: Database, execution: Execution) -> Execution:
        """Return the execution, timed out if its attempt is stalled."""
        if self.stalled_after is None or execution.status is not RUNNING:
            return execution
        # This execution only: others of its type may have longer heartbeat intervals.
        sweep = database.manager._sweep_one  # noqa: SLF001
        swept = sweep(execution, stalled_after=self.stalled_after)
        if swept is None:
            return execution
        why = "past its deadline"
        if swept.error is not None and swept.error.code == STALLED_ERROR.code:
            why = f"silent for {format_duration(round(seconds_silent(execution)))}"
        goes_on = self.again or swept.attempts < swept.max_attempts
        write_warning(
            f"Attempt {swept.attempts} of {execution.worker or 'an unnamed worker'} was {why}:"
            f" {'taking over' if goes_on else 'it is timed out'}"
        )
        return swept

    def _reopen(self, database: Database, execution: Execution) -> Execution:
        """Return an execution with an attempt left: a replay of one that is not to be retried."""
        if execution.status in (COMPLETED, CANCELLED):
            execution = self._sweep(database, self._find_replay(database, execution.id))
        if execution.status in LIVE or execution.attempts < execution.max_attempts:
            return execution
        try:
            return database.manager.retry(execution.id, extra_attempts=1, by=self.actor)
        except InvalidStateTransition:  # another process was faster
            return database.manager.get(execution.id)

    def _find_replay(self, database: Database, id: str) -> Execution:
        """Return the newest replay if it is live, or a new one."""
        engine = database.engine
        if engine.dialect.name == "postgresql":
            engine = engine.execution_options(isolation_level="READ COMMITTED")
        with engine.begin() as connection:
            # Of several processes, one at a time: the others find its replay.
            lock = select(executions.c.id).where(executions.c.id == id).with_for_update()
            connection.execute(lock)
            manager = database.manager.within(connection)
            newest = queries.rows(connection, queries.replays(id, 1))
            if newest and newest[0]["status"] in LIVE:
                return manager.get(newest[0]["id"])
            return manager.replay(id, by=self.actor)


def seconds_silent(execution: Execution) -> float:
    """Return the time since the last heartbeat of a running execution, by this host's clock."""
    seen = execution.heartbeat_at or execution.started_at or execution.updated_at
    return max(0.0, (datetime.now(UTC) - seen).total_seconds())


def payload_of(command: Sequence[str]) -> dict[str, Any]:
    """Return the payload for a command. Bytes that are not UTF-8 are replaced."""
    return {"command": [os.fsencode(word).decode(errors="replace") for word in command]}


def stored_command(execution: Execution) -> list[str]:
    """Return the command that an execution of `run` has as its payload.

    Raises:
        InvalidValue: it is no execution of `run`, or its command cannot be repeated exactly.
    """
    payload = execution.payload
    words = payload.get("command") if isinstance(payload, dict) else None
    if not (isinstance(words, list) and words and all(isinstance(each, str) for each in words)):
        raise InvalidValue("id", f"names an execution without a command: {execution.id}. Give it"
            " after --")  # fmt: skip
    if any("\N{REPLACEMENT CHARACTER}" in each for each in words):
        raise InvalidValue("id", f"names a command with bytes that are not UTF-8: {execution.id}."
            " Give it after --")  # fmt: skip
    return words
