"""The state machine as data: statuses, and for each verb its rule.

A rule names the source statuses of a verb, the target status, a condition, and the changed fields.
"""

from enum import Enum
from functools import cached_property

from .models import ExecutionFailure, ExecutionStatus

PENDING, RUNNING, COMPLETED, FAILED, RETRYING, TIMED_OUT, CANCELLED = ExecutionStatus
LIVE = (PENDING, RUNNING, RETRYING)
FINISHED = (COMPLETED, FAILED, TIMED_OUT, CANCELLED)


class Change(Enum):
    """How a move changes one field of an execution."""

    SET = "the value of the transition"
    SET_KEY = "the object with one key set by the transition; the other keys stay"
    CLEARED = "None"
    NOW = "the store's time"
    DEADLINE = "the store's time plus the execution's timeout; None without one"
    DELAYED = "the store's time plus the transition's `retry_after`, if any"
    NEXT_ATTEMPT = "attempts + 1"


SET, SET_KEY, CLEARED, NOW, DEADLINE, DELAYED, NEXT_ATTEMPT = Change


class Condition(Enum):
    """What a move requires of an execution besides its status."""

    ATTEMPT_LEFT = "attempts < max_attempts"
    DUE = "its due_at has come"
    OVERDUE = "its deadline_at has passed"
    STALLED = "no start and no heartbeat within the transition's `stalled_after`"


ATTEMPT_LEFT, DUE, OVERDUE, STALLED = Condition


class Move:
    """One step from any of `sources` to `target`, which changes the named fields.

    Each field has a `Change`, or the `ExecutionFailure` to store. `updated_at` always becomes now.
    """

    def __init__(
        self,
        sources: tuple[ExecutionStatus, ...],
        target: ExecutionStatus | None,
        *,
        when: Condition | None = None,
        **changes: Change | ExecutionFailure,
    ) -> None:
        self.sources = sources
        self.target = target  # None: the status does not change
        self.when = when
        self.changes = changes


class Rule:
    """A verb and its moves; the first allowed move is applied.

    In the status `already_done_in` the verb has nothing to do and returns the execution unchanged.
    """

    def __init__(
        self, verb: str, *moves: Move, already_done_in: ExecutionStatus | None = None
    ) -> None:
        self.verb = verb
        self.moves = moves
        self.already_done_in = already_done_in

    def __repr__(self) -> str:
        return f"Rule({self.verb!r})"

    @property
    def sources(self) -> tuple[ExecutionStatus, ...]:
        """The statuses in which the verb is allowed."""
        return tuple(s for s in ExecutionStatus if any(s in move.sources for move in self.moves))

    @cached_property
    def for_attempt(self) -> "Rule":
        """The rule of the same verb with `attempt=`: allowed only while that attempt is running."""
        moves = (Move((RUNNING,), m.target, when=m.when, **m.changes) for m in self.moves)
        return Rule(self.verb, *moves)


TIMEOUT_ERROR = ExecutionFailure(message="Execution timed out", code="timeout", retryable=True)
STALLED_ERROR = ExecutionFailure(
    message="Execution stalled: no heartbeat from its worker", code="stalled", retryable=True
)


def _started(when: Condition) -> Move:
    return Move(
        (PENDING, RETRYING),
        RUNNING,
        attempts=NEXT_ATTEMPT,
        started_at=NOW,
        deadline_at=DEADLINE,
        heartbeat_at=NOW,
        due_at=CLEARED,
        completed_at=CLEARED,
        error=CLEARED,
        worker=SET,
        when=when,
    )


START = Rule("start", _started(ATTEMPT_LEFT))
CLAIM = Rule("claim", _started(DUE))
COMPLETE = Rule("complete", Move((RUNNING,), COMPLETED, result=SET, completed_at=NOW))
FAIL = Rule("fail", Move((RUNNING, RETRYING), FAILED, error=SET, completed_at=NOW, due_at=CLEARED))
FAIL_RETRYABLE = Rule(
    "fail",
    Move((RUNNING,), RETRYING, error=SET, due_at=DELAYED, when=ATTEMPT_LEFT),
    *FAIL.moves,
)
_OVERDUE = Move((RUNNING,), TIMED_OUT, when=OVERDUE, error=TIMEOUT_ERROR, completed_at=NOW)
_STALLED = Move((RUNNING,), TIMED_OUT, when=STALLED, error=STALLED_ERROR, completed_at=NOW)
TIMEOUT = Rule("timeout", Move((RUNNING,), TIMED_OUT, error=TIMEOUT_ERROR, completed_at=NOW))
SWEEP_OVERDUE = Rule("sweep", _OVERDUE)
SWEEP = Rule("sweep", _OVERDUE, _STALLED)
CANCEL = Rule("cancel", Move((PENDING, RUNNING), CANCELLED, completed_at=NOW, due_at=CLEARED))
CANCEL_WITH_REASON = Rule(
    "cancel",
    Move((PENDING, RUNNING), CANCELLED, completed_at=NOW, due_at=CLEARED, metadata=SET_KEY),
)
RETRY = Rule(
    "retry",
    Move(
        (FAILED, TIMED_OUT),
        RETRYING,
        error=CLEARED,
        completed_at=CLEARED,
        due_at=NOW,
        when=ATTEMPT_LEFT,
    ),
    already_done_in=RETRYING,
)
HEARTBEAT = Rule("heartbeat", Move((RUNNING,), None, heartbeat_at=NOW))
UPDATE_PROGRESS = Rule("update_progress", Move(LIVE, None, heartbeat_at=NOW, progress=SET))
CHECKPOINT = Rule("checkpoint", Move(LIVE, None, heartbeat_at=NOW, checkpoints=SET_KEY))
ADVANCE = Rule("advance", Move(LIVE, None, heartbeat_at=NOW, progress=SET, checkpoints=SET_KEY))
# Logging changes no field. It is a rule, so that an attempt can log only while it is running.
LOG = Rule("log", Move(tuple(ExecutionStatus), None))

RULES = (
    *(START, CLAIM, COMPLETE, FAIL_RETRYABLE, FAIL, TIMEOUT, SWEEP, CANCEL, CANCEL_WITH_REASON),
    *(RETRY, HEARTBEAT, UPDATE_PROGRESS, CHECKPOINT, ADVANCE, LOG),
)
