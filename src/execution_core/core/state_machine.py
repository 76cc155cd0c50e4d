"""The state machine as data: statuses, and for each verb its rule.

A rule names the source statuses of a verb, the target status, a condition, and the changed fields.
"""

from enum import Enum
from functools import cached_property
from typing import Any

from .json_values import EMPTY, Json
from .models import ExecutionFailure, ExecutionStatus

PENDING, RUNNING, COMPLETED, FAILED, RETRYING, TIMED_OUT, CANCELLED = ExecutionStatus
LIVE = (PENDING, RUNNING, RETRYING)
FINISHED = (COMPLETED, FAILED, TIMED_OUT, CANCELLED)


class Change(Enum):
    """How a move changes one field of an execution."""

    SET = "the value of the transition"
    SET_KEY = "the object with keys set by the transition; the other keys stay"
    CLEARED = "None"
    NOW = "the store's time"
    DEADLINE = "the store's time plus the execution's timeout; None without one"
    DELAYED = "the store's time plus the transition's `retry_after`, if any"
    EXTENDED = "the larger of itself and attempts + the transition's `extra_attempts`"
    INCREASED = "itself + 1, at most the largest integer"


SET, SET_KEY, CLEARED, NOW, DEADLINE, DELAYED, EXTENDED, INCREASED = Change


FieldChange = Change | ExecutionFailure | Json
"""How a move changes a field, or the value that it stores."""


class Condition(Enum):
    """What a move requires of an execution besides its status."""

    ATTEMPT_LEFT = "attempts < max_attempts"
    DUE = "its due_at has come"
    OVERDUE = "its deadline_at has passed"
    STALLED = "it does not await children, and has no heartbeat within `stalled_after`"
    AWAITS_CHILDREN = "it awaits its children"
    CHILDREN_COMPLETED = "all of its children are completed"
    CHILDREN_FINISHED = "none of its children is live"


ATTEMPT_LEFT, DUE, OVERDUE, STALLED, AWAITS_CHILDREN, CHILDREN_COMPLETED, CHILDREN_FINISHED = (
    Condition
)


class Move:
    """One step from any of `sources` to `target`, which changes the named fields.

    It is allowed if all conditions of `when` are met. Each field has a `Change`, or the value to
    store. `updated_at` always becomes now.
    """

    def __init__(
        self,
        sources: tuple[ExecutionStatus, ...],
        target: ExecutionStatus | None,
        *,
        when: tuple[Condition, ...] = (),
        **changes: FieldChange,
    ) -> None:
        self.sources = sources
        self.target = target  # None: the status does not change
        self.when = when
        self.changes = changes


class Rule:
    """A verb and its moves; the first allowed move is applied.

    With `deletes_log`, the log of the execution is deleted as well.
    """

    def __init__(self, verb: str, *moves: Move, deletes_log: bool = False) -> None:
        self.verb = verb
        self.moves = moves
        self.deletes_log = deletes_log

    def __repr__(self) -> str:
        return f"Rule({self.verb!r})"

    @property
    def sources(self) -> tuple[ExecutionStatus, ...]:
        """The statuses in which the verb is allowed."""
        return tuple(s for s in ExecutionStatus if any(s in move.sources for move in self.moves))

    @cached_property
    def may_finish(self) -> bool:
        """Whether a move finishes the execution."""
        return any(move.target in FINISHED for move in self.moves)

    @cached_property
    def reads_children(self) -> bool:
        """Whether a move depends on the children of the execution."""
        about_children = {CHILDREN_COMPLETED, CHILDREN_FINISHED}
        return any(about_children & {*move.when} for move in self.moves)

    @cached_property
    def for_attempt(self) -> "Rule":
        """The rule of the same verb with `attempt=`: allowed only while that attempt is running."""
        moves = (Move((RUNNING,), m.target, when=m.when, **m.changes) for m in self.moves)
        return Rule(self.verb, *moves)


TIMEOUT_ERROR = ExecutionFailure(message="Execution timed out", code="timeout", retryable=True)
STALLED_ERROR = ExecutionFailure(
    message="Execution stalled: no heartbeat from its worker", code="stalled", retryable=True
)
CHILDREN_ERROR = ExecutionFailure(message="Not all of its children completed", code="children")
REDACTED_ERROR = ExecutionFailure(message="redacted", code="redacted")


def _started(when: Condition) -> Move:
    return Move(
        (PENDING, RETRYING),
        RUNNING,
        attempts=INCREASED,
        started_at=NOW,
        deadline_at=DEADLINE,
        heartbeat_at=NOW,
        due_at=CLEARED,
        completed_at=CLEARED,
        error=CLEARED,
        awaits_children_since=CLEARED,
        worker=SET,
        when=(when,),
    )


def _timed_out(when: Condition, error: ExecutionFailure) -> Move:
    return Move((RUNNING,), TIMED_OUT, when=(when,), error=error, completed_at=NOW)


def _to_retry(when: Condition, error: ExecutionFailure) -> Move:
    return Move((RUNNING,), RETRYING, when=(when, ATTEMPT_LEFT), error=error, due_at=NOW)


def _allow_attempt(when: tuple[Condition, ...], **changes: Any) -> tuple[Move, Move]:
    changes["due_at"] = DELAYED
    ended = {"error": CLEARED, "completed_at": CLEARED, **changes}
    return (
        Move((PENDING, RETRYING), None, **changes),
        Move((FAILED, TIMED_OUT), RETRYING, when=when, **ended),
    )


def _ended_with_children(*when: Condition, **changes: Any) -> tuple[Move, Move]:
    changes["completed_at"] = NOW
    failed = {"error": CHILDREN_ERROR, **changes}
    return (
        Move((RUNNING,), COMPLETED, when=(*when, CHILDREN_COMPLETED), **changes),
        Move((RUNNING,), FAILED, when=(*when, CHILDREN_FINISHED), **failed),
    )


START = Rule("start", _started(ATTEMPT_LEFT))
CLAIM = Rule("claim", _started(DUE))
COMPLETE = Rule("complete", Move((RUNNING,), COMPLETED, result=SET, completed_at=NOW))
FAIL = Rule("fail", Move((RUNNING, RETRYING), FAILED, error=SET, completed_at=NOW, due_at=CLEARED))
FAIL_RETRYABLE = Rule(
    "fail",
    Move((RUNNING,), RETRYING, error=SET, due_at=DELAYED, when=(ATTEMPT_LEFT,)),
    *FAIL.moves,
)
TIMEOUT = Rule("timeout", Move((RUNNING,), TIMED_OUT, error=TIMEOUT_ERROR, completed_at=NOW))
_OVERDUE, _STALLED = (OVERDUE, TIMEOUT_ERROR), (STALLED, STALLED_ERROR)
SWEEP_OVERDUE = Rule("sweep", _timed_out(*_OVERDUE))
SWEEP = Rule("sweep", _timed_out(*_OVERDUE), _timed_out(*_STALLED))
SWEEP_OVERDUE_RETRY = Rule("sweep", _to_retry(*_OVERDUE), *SWEEP_OVERDUE.moves)
SWEEP_RETRY = Rule("sweep", _to_retry(*_OVERDUE), _to_retry(*_STALLED), *SWEEP.moves)
CANCEL = Rule("cancel", Move(LIVE, CANCELLED, completed_at=NOW, due_at=CLEARED, error=CLEARED))
CANCEL_WITH_REASON = Rule(
    "cancel",
    Move(LIVE, CANCELLED, completed_at=NOW, due_at=CLEARED, error=CLEARED, metadata=SET_KEY),
)
RETRY = Rule("retry", *_allow_attempt((ATTEMPT_LEFT,)))
RETRY_EXTENDED = Rule("retry", *_allow_attempt((), max_attempts=EXTENDED))
RELEASE = Rule("release", Move((RUNNING,), RETRYING, due_at=NOW, max_attempts=INCREASED))
HEARTBEAT = Rule("heartbeat", Move((RUNNING,), None, heartbeat_at=NOW))
UPDATE_PROGRESS = Rule("update_progress", Move(LIVE, None, heartbeat_at=NOW, progress=SET))
CHECKPOINT = Rule("checkpoint", Move(LIVE, None, heartbeat_at=NOW, checkpoints=SET_KEY))
ADVANCE = Rule("advance", Move(LIVE, None, heartbeat_at=NOW, progress=SET, checkpoints=SET_KEY))
FINISH_WITH_CHILDREN = Rule(
    "finish_with_children",
    *_ended_with_children(awaits_children_since=NOW),
    Move((RUNNING,), None, heartbeat_at=NOW, awaits_children_since=NOW),
)
END_WITH_CHILDREN = Rule("finish_with_children", *_ended_with_children(AWAITS_CHILDREN))
_REMOVED: Any = {"payload": CLEARED, "result": CLEARED, "progress": CLEARED, "checkpoints": EMPTY}
REDACT = Rule(
    "redact",
    Move((COMPLETED, CANCELLED), None, redacted_at=NOW, **_REMOVED),
    Move((FAILED, TIMED_OUT), None, redacted_at=NOW, **_REMOVED, error=REDACTED_ERROR),
    deletes_log=True,
)
ANNOTATE = Rule("annotate", Move(tuple(ExecutionStatus), None, metadata=SET_KEY))
# Logging changes no field. It is a rule, so that an attempt can log only while it is running.
LOG = Rule("log", Move(tuple(ExecutionStatus), None))

RULES = (
    *(START, CLAIM, COMPLETE, FAIL_RETRYABLE, FAIL, TIMEOUT, SWEEP_OVERDUE, SWEEP),
    *(SWEEP_OVERDUE_RETRY, SWEEP_RETRY, CANCEL, CANCEL_WITH_REASON, RETRY, RETRY_EXTENDED, RELEASE),
    *(FINISH_WITH_CHILDREN, END_WITH_CHILDREN),
    *(HEARTBEAT, UPDATE_PROGRESS, CHECKPOINT, ADVANCE, ANNOTATE, REDACT, LOG),
)
