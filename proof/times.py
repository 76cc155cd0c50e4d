"""Check the times of executions: only the database's clock may have set them."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from pydantic import TypeAdapter

from .journal import DONE, Json, Operation
from .observed import ObservedExecution

HEARTBEAT_VERBS: Final = ("start", "claim", "heartbeat", "update_progress", "checkpoint", "advance")
"""The verbs that set `heartbeat_at`."""
PRECISION: Final = timedelta(milliseconds=1)
"""The precision of SQLite's times."""
DURATION: Final = TypeAdapter(timedelta)


def impossible_times(execution: ObservedExecution, owners: dict[str, Operation]) -> Iterator[str]:
    """Yield lost heartbeats, and sweeps and claims before their time.

    Answers after a lost connection are ignored: they may contain times of other operations.
    """
    answers = [
        (each, row) for each in execution.operations for row in _reliable_answers(execution, each)
    ]
    for each, row in answers:
        if each.verb in HEARTBEAT_VERBS and row["heartbeat_at"] != row["updated_at"]:
            yield f"{each.verb} {each.name} set no heartbeat"
        if each.verb == "sweep" and not _is_due(row, each.arguments.get("stalled_after")):
            yield f"sweep {each.name} acted before its time"
    rows = [execution.found, *(row for _, row in answers)]
    times = sorted((_at(row, "updated"), _at(row, "heartbeat")) for row in rows)
    if any(heartbeat > later for (_, heartbeat), (_, later) in pairwise(times)):
        yield "a heartbeat was overwritten by an earlier one"
    # A retry of a waiting execution leaves no trace in the history.
    retried = [row for each, row in answers if each.verb == "retry"]
    for before, token in pairwise(execution.tokens):
        owner, claim = owners.get(before or ""), owners.get(token or "")
        if owner and claim and claim.verb == "claim":
            for waiting in _reliable_answers(execution, owner):
                due = min(_at(each, "due") for each in (waiting, *retried))
                if any(_at(row, "started") < due for row in _reliable_answers(execution, claim)):
                    yield f"claim {claim.name} acted before its time"


def _reliable_answers(execution: ObservedExecution, operation: Operation) -> list[Json]:
    is_reliable = operation.outcome == DONE and not operation.cut
    return execution.answers(operation) if is_reliable else []


def _is_due(swept: Json, stalled_after: str | None) -> bool:
    due = [_at(swept, "deadline")] if swept["deadline_at"] else []
    if stalled_after:
        due.append(_at(swept, "heartbeat") + DURATION.validate_python(stalled_after))
    return any(each < _at(swept, "updated") + PRECISION for each in due)


def _at(row: Json, name: str) -> datetime:
    """Return a time; an unset one is earlier than all others."""
    return datetime.fromisoformat(row[f"{name}_at"] or "0001-01-01T00:00:00Z")
