"""How an attempt of `run` ended: what is recorded of it, and what `run` exits with."""

import errno
from dataclasses import dataclass, replace
from datetime import timedelta
from signal import Signals
from typing import Final

from ...core.errors import AttemptLost, ExecutionNotFound, InvalidStateTransition, StaleAttempt
from ...core.models import Execution, ExecutionFailure, ExecutionStatus
from ...core.state_machine import CANCELLED, COMPLETED, FAILED, RETRYING, TIMED_OUT
from ...tracking.attempt_state import INTERRUPTED
from ...tracking.manager import ExecutionManager
from .child_process import signal_name

REFUSED: Final = 1
RUNNING_ELSEWHERE: Final = 75
TIMED_OUT_CODE: Final = 124
NOT_EXECUTABLE_CODE: Final = 126
NOT_FOUND_CODE: Final = 127
SIGNAL_CODE: Final = 128
"""Plus the signal's number."""
CANCELLED_CODE: Final = 143


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    code: int
    """What `run` exits with, if this is the end."""
    message: str
    status: ExecutionStatus
    """What the execution is to become; of a failure the manager makes retrying, where it may."""
    output: str = ""
    error: ExecutionFailure | None = None

    def record(
        self, manager: ExecutionManager, started: Execution, retry_after: timedelta
    ) -> Execution:
        """Record it, once: a record whose answer was lost is found and not made again.

        Raises:
            AttemptLost: the execution is not this attempt's any more.
        """
        id, attempt = started.id, started.attempts
        try:
            if self.error is not None:
                return manager.fail(id, self.error, retry_after=retry_after, attempt=attempt)
            if self.status is TIMED_OUT:
                return manager.timeout(id, attempt=attempt)
            result = {"exit_status": self.code, "output": self.output}
            return manager.complete(id, result, attempt=attempt)
        except (InvalidStateTransition, StaleAttempt, ExecutionNotFound):
            found = self._find(manager, id)
            recorded = (FAILED, RETRYING) if self.error is not None else (self.status,)
            if found and found.attempts == attempt and found.status in recorded:
                return found
            raise AttemptLost(id, attempt, found) from None

    def code_after(self, attempt: int, execution: Execution) -> int | None:
        """Return the exit code, from the execution as it is then; None: try again."""
        if execution.status is CANCELLED:
            return CANCELLED_CODE
        if execution.attempts != attempt:
            return RUNNING_ELSEWHERE
        if COMPLETED in (self.status, execution.status):
            return self.code if self.status is execution.status else REFUSED
        if self.error is not None and self.error.code == INTERRUPTED:
            return self.code
        left = execution.attempts < execution.max_attempts
        if execution.status is RETRYING or (execution.status is TIMED_OUT and left):
            return None
        return self.code

    @staticmethod
    def _find(manager: ExecutionManager, id: str) -> Execution | None:
        try:
            return manager.get(id)
        except ExecutionNotFound:
            return None


def exited(status: int, output: str) -> Outcome:
    """The command ended by itself, or somebody else's signal ended it."""
    if status == 0:
        return Outcome(0, "Exited with status 0", COMPLETED, output)
    if status > 0:
        return _failure(status, f"Exited with status {status}", f"exit_{status}", output)
    name = signal_name(-status)
    return _failure(SIGNAL_CODE - status, f"Ended by {name}", name, output)


def interrupted(signal: Signals, output: str = "") -> Outcome:
    """`run` was told to end."""
    error = ExecutionFailure(
        message=f"Interrupted by {signal.name}",
        code=INTERRUPTED,
        stack=output or None,
        retryable=True,
    )
    return Outcome(SIGNAL_CODE + signal, error.message, FAILED, output, error)


def timed_out(output: str) -> Outcome:
    """The attempt took too long."""
    return Outcome(TIMED_OUT_CODE, "Timed out", TIMED_OUT, output)


def lost(output: str) -> Outcome:
    """The execution was taken from the attempt: whoever did so has recorded why."""
    return replace(timed_out(output), message="Ended, as it was taken away")


def not_started(program: str, problem: OSError) -> Outcome:
    """The command cannot be run, now or when it is tried again."""
    missing = isinstance(problem, FileNotFoundError | NotADirectoryError)
    hint = ": should it begin with #!/bin/sh?" if problem.errno == errno.ENOEXEC else ""
    error = ExecutionFailure(
        message=f"{program!r} cannot be run: {problem.strerror}{hint}",
        code="not_found" if missing else "not_executable",
    )
    return Outcome(
        NOT_FOUND_CODE if missing else NOT_EXECUTABLE_CODE, error.message, FAILED, error=error
    )


def _failure(code: int, message: str, name: str, output: str) -> Outcome:
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), None)
    detail = f"{message}: {last}" if last else message
    error = ExecutionFailure(message=detail, code=name, stack=output or None, retryable=True)
    return Outcome(code, message, FAILED, output, error)
