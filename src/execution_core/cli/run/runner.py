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
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from ...core.backoff import Backoff
from ...core.errors import (
    AttemptLost,
    ExecutionProblem,
    IdempotencyConflict,
    InvalidStateTransition,
    MaxRetriesExceeded,
)
from ...core.models import Execution
from ...core.state_machine import COMPLETED, FAILED, RUNNING, TIMED_OUT
from ...tracking.decorator import seconds_until_due
from ..database import Database, short_reason
from ..output import end_sentence, format_cell, format_duration
from ..streams import write_warning
from .events import EventQueue, Interrupted
from .exit_codes import NOT_RECORDED, REFUSED, RUNNING_ELSEWHERE, SIGNAL_CODE, Outcome
from .recorder import (
    RETRYABLE,
    UNAVAILABLE,
    Recorder,
    describe_loss,
    describe_refused_start,
)
from .request import Request, payload_of, seconds_silent, stored_command
from .shared_database import SharedDatabase
from .standard_input import InputSource
from .supervisor import Command, start_heartbeats

KILL_AFTER: Final = "EXECUTION_CORE_KILL_AFTER"
"""The variable by which a run inside a run learns the grace period of the outer one, in seconds."""
SILENT_SECONDS: Final = 60.0
"""A run elsewhere without a heartbeat for this time may be dead: say so also with --quiet."""
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
    _has_failed: bool = False
    """Whether an attempt of this process has failed."""

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
            describe = partial(self.request.describe_conflict, self.database, conflict)
            write_warning(self.events.call(describe))
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
        while (refusal := self.request.refuse(self.database, execution)) is None:
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
                reason = end_sentence(self._recorder.describe_silence())
                write_warning(
                    f"{reason} It is unknown whether {execution.id} was started. The command was"
                    " not run"
                )
                return REFUSED
        code, message = refusal
        limit = max(SILENT_SECONDS, 2 * self.heartbeat.total_seconds())
        is_alive = code == RUNNING_ELSEWHERE and seconds_silent(execution) <= limit
        if not (self.quiet and (code == 0 or is_alive)):
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
            self._log(execution.id, words, given)
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
        ran = f"The command ran from {format_cell(began)} to {format_cell(ended)}"
        log = partial(self._log, message=f"{ran}, while the database was unavailable")
        try:
            started = self._recorder.persist(self._start_late)
            log(started.id)
            return self._finish(started, outcome)
        except (InvalidStateTransition, MaxRetriesExceeded) as refused:
            why = describe_refused_start(refused, self.request.new_execution["idempotency_key"])
            log(refused.execution_id, data={"outcome": outcome.message, "output": outcome.output})
        except (*UNAVAILABLE, ExecutionProblem) as error:
            why = f"Not recorded because: {end_sentence(short_reason(error))}"
            if isinstance(error, UNAVAILABLE):
                why += " A later call runs the command again, as this one has no record"
        finally:
            command.drain()
        write_warning(f"NOT RECORDED: The command ran: {end_sentence(outcome.message)} {why}")
        return NOT_RECORDED

    def _log(self, id: str, message: str, data: Any = None) -> None:
        """Try to add a warning to the log of an execution."""
        log = partial(self.database.manager.log, id, message, level="warning", data=data)
        with suppress(ExecutionProblem, *UNAVAILABLE):
            self.events.call(log, time.monotonic() + START_SECONDS)

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
            self._has_failed = True
            write_warning(f"{end_sentence(describe_loss(lost))} The command: {outcome.message}")
            if lost.execution is None:
                return REFUSED
            execution = lost.execution
            self._recorder.log(started, outcome)
        except UNAVAILABLE as error:
            write_warning(
                f"NOT RECORDED: {name}: {end_sentence(outcome.message)} Not recorded because:"
                f" {end_sentence(short_reason(error))} Until it is recorded, a sweep, or a call"
                " with --stalled-after, takes it for stalled and repeats it. When the database is"
                f" back: {self.database.command(outcome.command(started))}"
            )
            return NOT_RECORDED
        else:
            self._delay = delay.total_seconds()  # this host's clock may be wrong
            self._report(name, started, outcome)
        code = outcome.code_after(started.attempts, execution)
        if code is not None:
            return code
        self.events.raise_if_interrupted()
        if self._input.refusal is not None:
            write_warning(f"No further attempt: {self._input.refusal}")
            return outcome.code
        return execution

    def _report(self, name: str, started: Execution, outcome: Outcome) -> None:
        """Say that an attempt has failed, or that it completed after one that failed."""
        if outcome.status is not COMPLETED:
            self._has_failed = True
            write_warning(f"{name}: {outcome.message}")
        elif self._has_failed:
            write_warning(f"{name} completed")
        if outcome.status is TIMED_OUT:
            self._recorder.log(started, outcome)
