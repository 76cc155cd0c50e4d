"""Which execution `run` is about: that of a key or of an id, or a new one."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ...core.errors import AlreadyRunning, ExecutionNotFound, InvalidValue, MaxRetriesExceeded
from ...core.models import Execution
from ...core.state_machine import CANCELLED, COMPLETED, LIVE, RUNNING
from .. import queries
from ..database import Database
from ..output import format_cell
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
        if self.stalled_after is not None and execution.status is RUNNING:
            # Sweep this execution only: others of its type may have longer heartbeat intervals.
            sweep = database.manager._sweep_one  # noqa: SLF001
            execution = sweep(execution, stalled_after=self.stalled_after) or execution
        return self._reopen(database, execution) if self.again else execution

    def refuse(self, execution: Execution) -> tuple[int, str] | None:
        """Return the exit code and the reason why no attempt is to be made; None if one is."""
        id, ended = execution.id, format_cell(execution.completed_at)
        again = "--again" if self.id is None else f"execution-core replay {id}"
        if execution.status is RUNNING:
            return RUNNING_ELSEWHERE, _describe_running(execution)
        if execution.status in (COMPLETED, CANCELLED):
            return 0 if execution.status is COMPLETED else REFUSED, (
                f"Execution {id} was {execution.status} at {ended}: the command was not run. To run"
                f" it again: {again}"
            )
        if execution.attempts < execution.max_attempts:
            return None
        if self.id is not None:
            again = f"execution-core retry {id} --extra-attempts 1, and then this command"
        return REFUSED, (
            f"{MaxRetriesExceeded.code}: Execution {id} has used {execution.attempts} of"
            f" {execution.max_attempts} attempts, the last until {ended}: the command was not run."
            f" To run it again: {again}"
        )

    def _get(self, database: Database, id: str) -> Execution:
        return database.manager.get(database.resolve_id(id))

    def _create(self, database: Database) -> Execution:
        try:
            return database.manager.create(**self.new_execution)
        except ExecutionNotFound:  # that of the environment is of another database, or was deleted
            return database.manager.create(**{**self.new_execution, "parent_id": None})

    def _reopen(self, database: Database, execution: Execution) -> Execution:
        """Return an execution with an attempt left: a replay of one that is not to be retried."""
        manager = database.manager
        if execution.status in LIVE:
            return execution
        if execution.status not in (COMPLETED, CANCELLED):
            if execution.attempts < execution.max_attempts:
                return execution
            return manager.retry(execution.id, extra_attempts=1, by=self.actor)
        with database.reader.connect() as connection:
            newest = queries.rows(connection, queries.replays(execution.id, 1))
        if newest and newest[0]["status"] in LIVE:
            return manager.get(newest[0]["id"])
        return manager.replay(execution.id, by=self.actor)


def _describe_running(execution: Execution) -> str:
    """Return who runs the execution, and what to do if that process is dead."""
    seen = execution.heartbeat_at or execution.started_at or execution.updated_at
    silent = timedelta(seconds=max(0, round((datetime.now(UTC) - seen).total_seconds())))
    worker = f", worker {execution.worker!r}" if execution.worker else ""
    return (
        f"{AlreadyRunning.code}: Execution {execution.id} is already running elsewhere: attempt"
        f" {execution.attempts}{worker}. Its last heartbeat was {silent} ago. If its worker is"
        " dead, run this command with --stalled-after"
    )


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
