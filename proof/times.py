"""What must be true of the times: those of the database alone, and none of another clock."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from pydantic import TypeAdapter

from .journal import DONE, Json, Operation
from .subject import Subject

BEATS: Final = ("start", "claim", "heartbeat", "update_progress", "checkpoint", "advance")
"""What is a sign of life."""
GRAIN: Final = timedelta(milliseconds=1)
"""What SQLite rounds to."""
DURATION: Final = TypeAdapter(timedelta)


def mistimed(subject: Subject, owners: dict[str, Operation]) -> Iterator[str]:
    """Say which signs of life are not kept, and what came before its time.

    Whoever lost a connection, and had to ask, may be told of times of others: those are left out.
    """
    told = [(each, row) for each in subject.operations for row in _told(subject, each)]
    for each, row in told:
        if each.verb in BEATS and row["heartbeat_at"] != row["updated_at"]:
            yield f"{each.verb} {each.name} gave no sign of life"
        if each.verb == "sweep" and not _is_due(row, each.arguments.get("stalled_after")):
            yield f"sweep {each.name} came before its time"
    rows = [subject.found, *(row for _, row in told)]
    times = sorted((_at(row, "updated"), _at(row, "heartbeat")) for row in rows)
    if any(beat > later for (_, beat), (_, later) in pairwise(times)):
        yield "a sign of life is not there any more"
    for before, token in pairwise(subject.tokens):
        owner, claim = owners.get(before or ""), owners.get(token or "")
        if owner and claim and claim.verb == "claim":
            for waiting in _told(subject, owner):
                due = _at(waiting, "retry" if waiting["due_at"] else "created")
                if any(_at(row, "started") < due for row in _told(subject, claim)):
                    yield f"claim {claim.name} came before its time"


def _told(subject: Subject, operation: Operation) -> list[Json]:
    is_told = operation.outcome == DONE and not operation.cut
    return subject.answers(operation) if is_told else []


def _is_due(swept: Json, stalled_after: str | None) -> bool:
    due = [_at(swept, "deadline")] if swept["deadline_at"] else []
    if stalled_after:
        due.append(_at(swept, "heartbeat") + DURATION.validate_python(stalled_after))
    return any(each < _at(swept, "completed") + GRAIN for each in due)


def _at(row: Json, name: str) -> datetime:
    """Return a time; one that is not there yet is before all others."""
    return datetime.fromisoformat(row[f"{name}_at"] or "0001-01-01T00:00:00Z")
