"""The writes of an attempt, as steps, and what it knows of its execution."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..core import transitions
from ..core.errors import AttemptLost, ConcurrentUpdate, ExecutionProblem
from ..core.json_values import JsonMembers
from ..core.models import Execution, ExecutionStatus
from ..core.state_machine import FINISHED, RUNNING
from ..core.steps import Steps
from ..core.transitions import Transition
from . import verbs
from .attempt_log import AttemptLog
from .attempt_options import AttemptOptions
from .joined_writes import JoinedWrites


class AttemptWrites(AttemptLog):
    """The part of an attempt that writes, and finds out why it cannot."""

    lost: Any  # the event of the sync or the async attempt
    _inside = False
    """Whether this came from `within`: it writes in a transaction of the caller's."""

    def __init__(self, store: Any, options: AttemptOptions) -> None:
        super().__init__(store, options)
        self._execution: Execution | None = None
        self._checkpoints: dict[str, Any] = {}
        self._joined = JoinedWrites()

    @property
    def execution(self) -> Execution:
        """The execution as this attempt found it when it started, payload included."""
        if self._execution is None:
            raise RuntimeError("The attempt starts with its block: with manager.attempt(id) as …")
        return self._execution

    @property
    def number(self) -> int:
        """The number of this attempt, from 1: what other verbs take as `attempt=`."""
        return self.execution.attempts

    @property
    def checkpoints(self) -> Mapping[str, Any]:
        """The checkpoints as this attempt found them, and those that it has set since."""
        _ = self.execution
        return MappingProxyType(self._checkpoints)

    @property
    def started(self) -> bool:
        """Whether its block has been entered and the execution started."""
        return self._execution is not None

    def _write_steps(self, transition: Transition) -> Steps[None]:
        if not self._options.background:
            yield from self._flush_steps()
        if (yield from self._update_steps(transition)) is None:
            raise (yield from self._loss_steps(transition))
        written = transition.values.get("checkpoints")
        if isinstance(written, JsonMembers):
            self._checkpoints |= {key: each.value for key, each in written.values.items()}

    def _update_steps(self, transition: Transition) -> Steps[ExecutionStatus | None]:
        id = self._options.id
        self._check_own_transactions()
        status: ExecutionStatus | None
        status = yield lambda: self._store.update(id, transition, returning="status")
        if self._inside and status is not None:
            self._joined.add(self._store)
        elif status in FINISHED and not self._options.joined:
            yield from verbs.end_parents(self._store, self.execution.parent_id)
        return status

    def _end_steps(self, transition: Transition) -> Steps[None]:
        """End the attempt before the end of its block."""
        yield from self._flush_steps()
        self._joined.is_ending = True
        try:
            status = yield from self._update_steps(transition)
            self._joined.ended = status or self._joined.ended
        finally:
            self._joined.is_ending = False
        if status is None:
            raise (yield from self._loss_steps(transition))

    def _leave_steps(self) -> Steps[None]:
        yield from self._end_steps(transitions.finish_with_children(self.number))
        if self._joined.ended is RUNNING:
            # The last one may have finished before it could see that its parent awaits it.
            yield from self._update_steps(transitions.end_with_children())

    def _waits_for_caller(self) -> bool:
        """Return whether a write would wait for a transaction that this attempt writes in."""
        if self._inside or self._options.joined or getattr(self._store, "shares_connection", False):
            return False
        return self._joined.is_open()

    def _is_blocked(self) -> bool:
        """Return whether no connection can write until the caller ends the transaction."""
        return getattr(self._store, "single_writer", False) and self._waits_for_caller()

    def _check_own_transactions(self) -> None:
        if self._waits_for_caller():
            raise RuntimeError(
                f"Attempt {self.number} of execution {self._options.id} cannot write: a transaction"
                " of yours that it writes in is still open, and each would wait for the other. End"
                " the transaction first, or write in it: attempt.within(session)"
            )

    def _loss_steps(self, transition: Transition) -> Steps[ExecutionProblem]:
        """Return why nothing was written."""
        found = yield lambda: self._store.find_by_id(self._options.id)
        problem = transitions.refusal(transition, self._options.id, found)
        if isinstance(problem, ConcurrentUpdate):
            return problem
        self.lost.set()
        return AttemptLost(self._options.id, self.number, found)

    def _has_ended_steps(self) -> Steps[bool]:
        """Return whether the attempt has ended itself, or the caller's transaction decides that."""
        if self._joined.ended is None:
            return False
        is_open, id = self._joined.is_open(), self._options.id
        store = self._joined.last_store if is_open else self._store
        found = yield lambda: store.find_by_id(id)
        if found is None:
            return True
        if not is_open and found.status in FINISHED:
            yield from verbs.end_parents(store, found.parent_id)
        if (found.status, found.attempts) == (RUNNING, self.number):
            return found.awaits_children_since is not None
        # Another caller may have ended the attempt, after the caller has rolled its end back.
        end = found.status if found.attempts == self.number else None
        if hasattr(store, "history"):
            for entry in (yield lambda: store.history(id)):
                if (entry.attempt, entry.from_status) == (self.number, RUNNING):
                    end = entry.to_status
        return end in (None, self._joined.ended) or found.awaits_children_since is not None
