"""The outcome of an attempt of `run`: its record in the database and its exit code."""

import errno
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from signal import Signals
from typing import Final

from ...core.errors import AttemptLost, ExecutionNotFound, InvalidStateTransition, StaleAttempt
from ...core.models import Execution, ExecutionFailure, ExecutionStatus
from ...core.state_machine import CANCELLED, COMPLETED, FAILED, RETRYING, TIMED_OUT
from ...tracking.attempt_options import INTERRUPTED
from ...tracking.manager import ExecutionManager
from .child_process import signal_name

REFUSED: Final = 1
NOT_RECORDED: Final = 69  # EX_UNAVAILABLE of sysexits.h
OUTPUT_LOST: Final = 74  # EX_IOERR
RUNNING_ELSEWHERE: Final = 75
TIMED_OUT_CODE: Final = 124
NOT_EXECUTABLE_CODE: Final = 126
NOT_FOUND_CODE: Final = 127
SIGNAL_CODE: Final = 128
"""Plus the number of the signal."""
CANCELLED_CODE: Final = 143
MAX_INTERPRETER: Final = 256
"""Linux reads at most this many bytes of an interpreter line."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attempt."""

    code: int
    """The exit code of `run`, if no attempt follows."""
    message: str
    status: ExecutionStatus
    """The new status; a failure becomes retrying if attempts are left."""
    output: str = ""
    error: ExecutionFailure | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a signal to `run` ended the attempt."""
        return self.error is not None and self.error.code == INTERRUPTED

    def command(self, started: Execution) -> str:
        """Return the command line with which an operator records it."""
        words = ["complete", started.id]
        if self.error is not None:
            words = ["fail", started.id, shlex.quote(self.error.message)]
            words += ["--retryable"] if self.error.retryable else []
        elif self.status is TIMED_OUT:
            words[0] = "timeout"
        return " ".join([*words, "--attempt", str(started.attempts)])

    def record(
        self, manager: ExecutionManager, started: Execution, retry_after: timedelta
    ) -> Execution:
        """Save the outcome; calling it again after a lost response changes nothing."""
        id, attempt = started.id, started.attempts
        try:
            if self.error is not None:
                delay = retry_after if self.error.retryable else None
                return manager.fail(id, self.error, retry_after=delay, attempt=attempt)
            if self.status is TIMED_OUT:
                return manager.timeout(id, attempt=attempt)
            result = {"exit_status": self.code, "output": self.output}
            return manager.complete(id, result, attempt=attempt)
        except (InvalidStateTransition, StaleAttempt, ExecutionNotFound):
            found = None
            with suppress(ExecutionNotFound):
                found = manager.get(id)
            recorded = (FAILED, RETRYING) if self.error is not None else (self.status,)
            if found and found.attempts == attempt and found.status in recorded:
                return found
            raise AttemptLost(id, attempt, found) from None

    def code_after(self, attempt: int, execution: Execution) -> int | None:
        """Return the exit code for the execution as it is now; None means to try again."""
        if execution.status is CANCELLED:
            return CANCELLED_CODE
        if execution.attempts != attempt:
            return RUNNING_ELSEWHERE
        if COMPLETED in (self.status, execution.status):
            return self.code if self.status is execution.status else REFUSED
        if self.interrupted:
            return self.code
        left = execution.attempts < execution.max_attempts
        if execution.status is RETRYING or (execution.status is TIMED_OUT and left):
            return None
        # Somebody else may have recorded another outcome.
        expected = FAILED if self.error is not None else self.status
        return self.code if execution.status in (expected, TIMED_OUT) else REFUSED


def after_exit(status: int, output: str, lost: OSError | None = None) -> Outcome:
    """Return the outcome of a command that exited or was ended by a foreign signal.

    `lost` is why some of its output could not be written.
    """
    if status == 0 and lost is not None:
        message = f"Exited with status 0, but its output could not be written: {lost.strerror}"
        return _failure(OUTPUT_LOST, message, "output_lost", output)
    if status == 0:
        return Outcome(0, "Exited with status 0", COMPLETED, output)
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), None)
    detail = f": {last}" if last else ""
    after = ""
    if lost is not None:
        detail, after = "", f", after its output could not be written: {lost.strerror}"
    if status > 0:
        message = f"Exited with status {status}{after}"
        return _failure(status, message, f"exit_{status}", output, detail)
    name = signal_name(-status)
    return _failure(SIGNAL_CODE - status, f"Ended by {name}{after}", name, output, detail)


def after_interrupt(signal: Signals, output: str = "") -> Outcome:
    """Return the outcome after `run` received a signal."""
    return _failure(SIGNAL_CODE + signal, f"Interrupted by {signal.name}", INTERRUPTED, output)


def after_timeout(output: str, message: str = "Timed out") -> Outcome:
    """Return the outcome of an attempt that reached its deadline."""
    return Outcome(TIMED_OUT_CODE, message, TIMED_OUT, output)


def after_loss(output: str) -> Outcome:
    """Return the outcome of an attempt that lost its execution; the database says why."""
    return after_timeout(output, "Ended by execution-core run")


def after_start_failure(command: Sequence[str], problem: OSError) -> Outcome:
    """Return the outcome of a command that cannot be started, now or later."""
    missing = isinstance(problem, FileNotFoundError | NotADirectoryError)
    error = ExecutionFailure(
        message=f"{command[0]!r} cannot be run: {problem.strerror}{_advise(command, problem)}",
        code="not_found" if missing else "not_executable",
    )
    return Outcome(
        NOT_FOUND_CODE if missing else NOT_EXECUTABLE_CODE, error.message, FAILED, error=error
    )


def _advise(command: Sequence[str], problem: OSError) -> str:
    """Return the likely cause of a start failure and what to do, as far as it is known."""
    if problem.errno == errno.ENOEXEC:
        return ". Add an interpreter line such as #!/bin/sh"
    if not isinstance(problem, FileNotFoundError):
        return ""
    if program := shutil.which(command[0]):
        line = b""
        with suppress(OSError), Path(program).open("rb") as file:
            line = file.readline(MAX_INTERPRETER)
        crlf = "; the file has CRLF line ends: convert them to LF" if b"\r" in line else ""
        name = line[2:].decode(errors="replace").strip() if line.startswith(b"#!") else ""
        return f". The file exists, but its interpreter {name!r} was not found{crlf}"
    if len(command) == 1 and " " in command[0]:
        return f". To run a shell command: -- sh -c {shlex.quote(command[0])}"
    return ""


def _failure(code: int, message: str, name: str, output: str, detail: str = "") -> Outcome:
    text = message + detail
    error = ExecutionFailure(message=text, code=name, stack=output or None, retryable=True)
    return Outcome(code, message, FAILED, output, error)
