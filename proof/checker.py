"""What must be true of journals, rows and histories afterwards, whatever happened meanwhile."""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from .explanation import steps
from .journal import DONE, NOT_DONE, REFUSED, UNKNOWN, Operation
from .linear import unexplained
from .model import ARROWS, TARGETS
from .subject import Subject, assign
from .times import mistimed

Owners = dict[str, Operation]


class Violation(NamedTuple):
    """Something that must not be."""

    kind: str
    execution_id: str
    says: str


def check(
    operations: list[Operation], subjects: list[Subject], expected: tuple[str, ...] = ()
) -> list[Violation]:
    """Return all that is wrong.

    Args:
        operations: what the journals tell.
        subjects: the executions as they were found afterwards.
        expected: the errors of SQLAlchemy's that faults explain.
    """
    assign(operations, subjects)
    owners = {token: each for each in operations for token in each.tokens}
    wrong = [
        Violation(kind, subject.id, says)
        for subject in subjects
        for kind, part in CHECKS.items()
        for says in part(subject, owners)
    ]
    errors = ((each, each.problem.get("error", "")) for each in operations)
    wrong += [
        Violation(ERRORS, each.arguments.get("id", ""), f"{each.verb} {each.name}: {error}")
        for each, error in errors
        if error and not error.startswith(expected)
    ]
    return wrong + [
        Violation(LOST, id, f"it is not there, and was answered by {each.verb} {each.name}")
        for id, each in _gone(operations, subjects).items()
    ]


def _gone(operations: list[Operation], subjects: list[Subject]) -> Owners:
    """Return the ids that were answered and are not there: nothing is ever deleted."""
    there = {subject.id for subject in subjects}
    done = (each for each in operations if each.outcome == DONE)
    return {row["id"]: each for each in done for row in each.answers if row["id"] not in there}


def _illegal(subject: Subject, owners: Owners) -> Iterator[str]:  # noqa: ARG001
    """The history is a walk along the arrows, without gaps, to where the execution stands."""
    walk = [(move.from_status, move.to_status) for move in subject.history]
    came_to = [None, *(target for _, target in walk)]
    if (
        [move.seq for move in subject.history] != list(range(1, len(walk) + 1))
        or not ARROWS.issuperset(walk)
        or [source for source, _ in walk] != came_to[:-1]
        or came_to[-1] != subject.found["status"]
    ):
        yield f"it is {subject.found['status']} after {walk}"


def _lost(subject: Subject, owners: Owners) -> Iterator[str]:  # noqa: ARG001
    """Each move that was answered is in the history once."""
    for each in subject.operations:
        if each.outcome != DONE or each.verb not in TARGETS or not subject.answers(each):
            continue
        times = sum(subject.tokens.count(token) for token in each.tokens)
        found_done = each.verb in ("create", "retry") and times == 0
        if times != 1 and not found_done:
            yield f"{each.verb} {each.name} is in the history {times} times"


def _undone(subject: Subject, owners: Owners) -> Iterator[str]:  # noqa: ARG001
    """What was refused, or was said not to be done, has left no trace."""
    traces = {subject.token, *subject.tokens}
    for each in subject.operations:
        if each.outcome in (REFUSED, NOT_DONE) and (
            traces & each.tokens.keys() or each.name in subject.shown
        ):
            yield f"{each.verb} {each.name} is there in spite of {each.problem}"


def _strange(subject: Subject, owners: Owners) -> Iterator[str]:
    """Each move belongs to an operation that makes such moves, was under way, and told of it."""
    began = 0.0
    for move, token in zip(subject.history, subject.tokens, strict=True):
        owner = owners.get(token or "")
        if owner is None or move.to_status not in TARGETS.get(owner.verb, ()):
            yield f"{move} is by {owner and owner.verb}"
            continue
        began = max(began, owner.tokens[token or ""])
        if owner.ended < began:
            yield f"{move} comes after the end of {owner.verb} {owner.name}"
        elif owner.outcome == DONE and not subject.answers(owner) and not _passed(subject, owner):
            yield f"{move} was not told of by {owner.verb} {owner.name}"


def _passed(subject: Subject, owner: Operation) -> bool:
    """Whether others may have written before its owner, who had to ask, found what he had moved."""
    return owner.cut and any(
        other is not owner
        and other.tokens
        and other.outcome in (DONE, UNKNOWN)
        and other.began < owner.ended
        and other.ended > owner.began
        for other in subject.operations
    )


def _miscounted(subject: Subject, owners: Owners) -> Iterator[str]:  # noqa: ARG001
    """Each attempt was started, one after the other."""
    starts = [move.attempt for move in subject.history if move.to_status == "running"]
    if starts != list(range(1, subject.found["attempts"] + 1)):
        yield f"{subject.found['attempts']} attempts, but the starts of {starts}"


def _unexplained(subject: Subject, owners: Owners) -> Iterator[str]:  # noqa: ARG001
    """There is an order of all operations that explains what each answered."""
    if left := unexplained(list(steps(subject))):
        names = [f"{each.verb} {each.name}" for each in (s.operation for s in left) if each]
        yield f"no order explains {', '.join(names[:8]) or 'the row at the end'}"


LOST: Final = "acknowledged transitions missing"
CHECKS: Final[dict[str, Callable[[Subject, Owners], Iterator[str]]]] = {
    "invalid histories": _illegal,
    LOST: _lost,
    "refused calls that took effect": _undone,
    "transitions without a call": _strange,
    "attempt counts unequal to starts": _miscounted,
    "answers that are not linearizable": _unexplained,
    "impossible times": mistimed,
}
ERRORS: Final = "errors without a fault"
KINDS: Final = (*CHECKS, ERRORS)
