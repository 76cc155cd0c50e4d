"""Run attempts of a command until one succeeds or none is left."""

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from ...core.backoff import Backoff
from ...core.errors import (
    AttemptLost,
    ExecutionProblem,
    IdempotencyConflict,
    InvalidStateTransition,
)
from ...core.models import Execution
from ...core.state_machine import COMPLETED, FAILED, RUNNING, TIMED_OUT
from ...tracking.decorator import seconds_until_due
from ..database import Database, short_reason
from ..output import format_cell, format_duration
from ..streams import write_warning
from .events import EventQueue, Interrupted
from .exit_codes import NOT_RECORDED, REFUSED, RUNNING_ELSEWHERE, SIGNAL_CODE, Outcome
from .recorder import RETRYABLE, UNAVAILABLE, Recorder, describe_loss
from .request import Request, payload_of, stored_command
from .shared_database import SharedDatabase
from .standard_input import InputSource
from .supervisor import Command, start_heartbeats

KILL_AFTER: Final = "EXECUTION_CORE_KILL_AFTER"
"""The variable by which a run inside a run learns the grace period of the outer one, in seconds."""
START_SECONDS: Final = 60.0
"""Time limit of a start, which signals do not interrupt: its outcome must be known."""


@dataclass(kw_only=True)
class Runner:
    """Run one command as an execution: `Runner(request=Request(…), …).run()`."""

    database: Database
    events: EventQueue
    request: Request
    command: Sequence[str]
    """Empty to run the command that the execution has as its payload."""
    shared: SharedDatabase
    """Where the command finds the database."""
    backoff: Backoff | None
    kill_after: timedelta
    heartbeat: timedelta
    record_for: timedelta
    quiet: bool
    """Whether to say nothing when there is nothing to do."""
    run_anyway: bool
    """Whether to run the command although the database is unavailable."""
    has_run: bool = False
    """Whether the command has been started."""
    _found: Execution | None = None
    """What a record is made for when the database is back."""
    _delay: float | None = None
    """Seconds to wait after an attempt of this process."""

    def __post_init__(self) -> None:
        self._input = InputSource()
        self._recorder = Recorder(self.database, self.events, self.record_for)
        self._worker = f"{socket.gethostname()[:200]}:{os.getpid()}"

    def run(self) -> int:
        """Run the command and return the exit code."""
        try:
            step: Execution | int | None = None
            while not isinstance(step, int):
                step = self._step(step)
        except Interrupted as interruption:
            write_warning(f"Interrupted by {interruption.signal.name} while no attempt was running")
            return SIGNAL_CODE + interruption.signal
        return step

    def _step(self, execution: Execution | None) -> Execution | int:
        """Make the next attempt if allowed; return the updated execution, or the exit code."""
        try:
            if execution is None:
                execution = self.events.call(partial(self.request.find, self.database))
            self._found = execution
            ready = self._start_if_allowed(execution)
        except IdempotencyConflict as conflict:
            id, differs = conflict.execution_id, conflict.differs.replace("payload", "command")
            write_warning(
                f"{conflict.code}: The key belongs to execution {id}, which has another {differs}:"
                f" the command was not run. Use another key, or --id {id} instead of the key"
            )
            return REFUSED
        except UNAVAILABLE as error:
            if not self.run_anyway:
                raise
            write_warning(f"The command runs without a record: {short_reason(error)}")
            return self._run_without_record()
        if isinstance(ready, int):
            return ready
        outcome, command = self._run_command(ready)
        try:
            return self._finish(ready, outcome)
        finally:
            command.drain()

    def _start_if_allowed(self, execution: Execution) -> Execution | int:
        """Start an attempt and return the execution, or the exit code if there is none to make."""
        find = partial(self.database.manager.get, execution.id)
        while (refusal := self.request.refuse(execution)) is None:
            try:
                if (found := self._wait(execution)) is not execution:
                    execution = found
                    continue
                return self._start(execution)
            except (InvalidStateTransition, *RETRYABLE):  # another process was faster
                execution = self.events.call(find)
            except TimeoutError:
                if self.run_anyway:
                    raise
                write_warning(
                    "The database did not respond: it is unknown whether"
                    f" {execution.id} was started. The command was not run"
                )
                return REFUSED
        code, message = refusal
        if not (self.quiet and code in (0, RUNNING_ELSEWHERE)):
            write_warning(message)
        return code

    def _wait(self, execution: Execution) -> Execution:
        """Wait until the execution is due; return it, as it is when others change it meanwhile."""
        delay, self._delay = self._delay, None
        seconds = seconds_until_due(execution) if delay is None else delay
        until = time.monotonic() + seconds
        if seconds >= 1:
            write_warning(f"Next attempt in {format_duration(round(seconds))}")
        self.events.raise_if_interrupted()
        find = partial(self.database.manager.get, execution.id)
        while (left := until - time.monotonic()) > 0:
            self.events.sleep(min(left, max(1.0, self.heartbeat.total_seconds())))
            with suppress(SQLAlchemyError, *RETRYABLE):
                found = self.events.call(find)
                if found.updated_at != execution.updated_at:
                    return found
        return execution

    def _start(self, execution: Execution) -> Execution:
        self.command = self.command or stored_command(execution)
        manager, actor = self.database.manager, self.request.actor
        if execution.status in (FAILED, TIMED_OUT):
            self.events.call(lambda: manager.retry(execution.id, by=actor))
        self.events.raise_if_interrupted()
        start = partial(manager.start, execution.id, worker=self._worker)
        started = self.events.call(start, time.monotonic() + START_SECONDS)
        if execution.payload != (given := payload_of(self.command)):
            words = f"Attempt {started.attempts} runs another command than the payload"
            log = partial(manager.log, execution.id, words, level="warning", data=given)
            with suppress(ExecutionProblem, *UNAVAILABLE):
                self.events.call(log, time.monotonic() + START_SECONDS)
        return started

    def _run_command(self, started: Execution | None) -> tuple[Outcome, Command]:
        """Run the command once, for an attempt or, without a database, for none."""
        self.has_run = True
        environment = {"EXECUTION_ID": "", "EXECUTION_ATTEMPT": ""}
        heartbeat, timeout = threading.Event(), self.request.new_execution["timeout"]
        again = False
        if started is not None:
            environment = {"EXECUTION_ID": started.id, "EXECUTION_ATTEMPT": str(started.attempts)}
            manager, timeout = self.database.manager, started.timeout
            heartbeat = start_heartbeats(manager, started, self.heartbeat, self.events)
            again = started.attempts < started.max_attempts
        environment[KILL_AFTER] = str(self.kill_after.total_seconds())
        given = self._input.open(again=again or self.run_anyway)
        command = Command(
            self.command,
            os.environ | self.shared.environment | environment,
            given,
            self.kill_after,
            self.events,
            self.shared.folder,
        )
        try:
            with self.shared.password():
                return command.run(heartbeat, timeout), command
        finally:
            heartbeat.set()
            given.end()

    def _run_without_record(self) -> Execution | int:
        """Run the command, and record the attempt afterwards if the database comes back in time."""
        if not self.command:
            write_warning("The command is in the database: give it after --")
            return REFUSED
        began = datetime.now(UTC)
        outcome, command = self._run_command(None)
        ended = datetime.now(UTC)
        try:
            started = self._recorder.persist(self._start_late)
            words = f"The command ran from {format_cell(began)} to {format_cell(ended)}, while the"
            log = partial(self.database.manager.log, started.id, level="warning")
            with suppress(ExecutionProblem, *UNAVAILABLE):
                self.events.call(
                    partial(log, f"{words} database was unavailable"),
                    time.monotonic() + START_SECONDS,
                )
            return self._finish(started, outcome)
        except (*UNAVAILABLE, ExecutionProblem) as error:
            write_warning(
                f"NOT RECORDED: The command ran: {outcome.message}. {short_reason(error)}"
            )
            return NOT_RECORDED
        finally:
            command.drain()

    def _start_late(self) -> Execution:
        if self._found is None:
            self._found = self.request.find(self.database)
        execution = self.database.manager.get(self._found.id)
        if (execution.status, execution.worker) == (RUNNING, self._worker):
            return execution  # its start was not answered
        if execution.status in (FAILED, TIMED_OUT):
            self.database.manager.retry(execution.id, by=self.request.actor)
        return self.database.manager.start(execution.id, worker=self._worker)

    def _finish(self, started: Execution, outcome: Outcome) -> Execution | int:
        """Save the outcome; return the execution if it is to be tried again, or the exit code."""
        delay = timedelta(0)
        if self.backoff and not outcome.interrupted:
            delay = self.backoff.delay(started.attempts)
        name = f"Attempt {started.attempts} of {started.max_attempts} of execution {started.id}"
        try:
            execution = self._recorder.record(started, outcome, delay)
        except AttemptLost as lost:
            write_warning(f"{describe_loss(lost)}. The command: {outcome.message}")
            if lost.execution is None:
                return REFUSED
            execution = lost.execution
            self._recorder.log(started, outcome)
        except UNAVAILABLE as error:
            write_warning(
                f"NOT RECORDED: {name}: {outcome.message}. {short_reason(error)}. When the database"
                f" is back: execution-core {outcome.command(started)}"
            )
            return NOT_RECORDED
        else:
            self._delay = delay.total_seconds()  # this host's clock may be wrong
            if outcome.status is not COMPLETED:
                write_warning(f"{name}: {outcome.message}")
            if outcome.status is TIMED_OUT:
                self._recorder.log(started, outcome)
        code = outcome.code_after(started.attempts, execution)
        if code is not None:
            return code
        self.events.raise_if_interrupted()
        if self._input.refusal is not None:
            write_warning(f"No further attempt: {self._input.refusal}")
            return outcome.code
        return execution
