"""Check journals, rows and histories for violations."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from .journal import DONE, NOT_DONE, REFUSED, UNKNOWN, Operation
from .linearizability import unexplained
from .model import ALLOWED_TRANSITIONS, TARGETS
from .observed import ObservedExecution, assign
from .steps import steps
from .times import impossible_times

Owners = dict[str, Operation]


class Violation(NamedTuple):
    """A violation of what the library promises."""

    kind: str
    execution_id: str
    message: str


def check(
    operations: list[Operation], executions: list[ObservedExecution], expected: tuple[str, ...] = ()
) -> list[Violation]:
    """Return all violations.

    Args:
        operations: the operations of all journals.
        executions: the executions as read at the end.
        expected: the SQLAlchemy errors that faults explain.
    """
    assign(operations, executions)
    owners = {token: each for each in operations for token in each.tokens}
    wrong = [
        Violation(kind, execution.id, message)
        for execution in executions
        for kind, find in CHECKS.items()
        for message in find(execution, owners)
    ]
    errors = ((each, each.problem.get("error", "")) for each in operations)
    wrong += [
        Violation(ERRORS, each.arguments.get("id", ""), f"{each.verb} {each.name}: {error}")
        for each, error in errors
        if error and not error.startswith(expected)
    ]
    return wrong + [
        Violation(LOST, id, f"it is missing, but {each.verb} {each.name} returned it")
        for id, each in _missing_executions(operations, executions).items()
    ]


def check_histories(executions: Iterable[ObservedExecution]) -> Iterator[Violation]:
    """Yield the violations that the histories show without journals."""
    for execution in executions:
        for kind in (HISTORIES, COUNTS):
            for message in CHECKS[kind](execution, {}):
                yield Violation(kind, execution.id, f"{execution.id}: {message}")


def _missing_executions(operations: list[Operation], executions: list[ObservedExecution]) -> Owners:
    """Return the ids that were returned and are missing: nothing is ever deleted."""
    there = {execution.id for execution in executions}
    done = (each for each in operations if each.outcome == DONE)
    return {row["id"]: each for each in done for row in each.answers if row["id"] not in there}


def _invalid_history(execution: ObservedExecution, owners: Owners) -> Iterator[str]:  # noqa: ARG001
    """The history is a complete sequence of allowed transitions that ends in the row's status."""
    transitions = [(row.from_status, row.to_status) for row in execution.history]
    statuses = [None, *(target for _, target in transitions)]
    if (
        [row.seq for row in execution.history] != list(range(1, len(transitions) + 1))
        or not ALLOWED_TRANSITIONS.issuperset(transitions)
        or [source for source, _ in transitions] != statuses[:-1]
        or statuses[-1] != execution.found["status"]
    ):
        yield f"it is {execution.found['status']} after {transitions}"


def _lost_transitions(execution: ObservedExecution, owners: Owners) -> Iterator[str]:  # noqa: ARG001
    """Each acknowledged transition is in the history once."""
    for each in execution.operations:
        if each.outcome != DONE or each.verb not in TARGETS or not execution.answers(each):
            continue
        times = sum(execution.tokens.count(token) for token in each.tokens)
        no_transition_needed = each.verb in ("create", "retry") and times == 0
        if times != 1 and not no_transition_needed:
            yield f"{each.verb} {each.name} is in the history {times} times"


def _refused_but_done(execution: ObservedExecution, owners: Owners) -> Iterator[str]:  # noqa: ARG001
    """An operation that was refused, or reported as not done, has changed nothing."""
    traces = {execution.token, *execution.tokens}
    for each in execution.operations:
        if each.outcome in (REFUSED, NOT_DONE) and (
            traces & each.tokens.keys() or each.name in execution.visible_values
        ):
            yield f"{each.verb} {each.name} took effect despite {each.problem}"


def _unowned_transitions(execution: ObservedExecution, owners: Owners) -> Iterator[str]:
    """Each transition belongs to an operation of that kind, within its time, that returned it."""
    began = 0.0
    for row, token in zip(execution.history, execution.tokens, strict=True):
        owner = owners.get(token or "")
        if owner is None or row.to_status not in TARGETS.get(owner.verb, ()):
            yield f"{row} was written by {owner and owner.verb}"
            continue
        began = max(began, owner.tokens[token or ""])
        if owner.ended < began:
            yield f"{row} is later than the end of {owner.verb} {owner.name}"
        elif (
            owner.outcome == DONE
            and not execution.answers(owner)
            and not _overtaken_before_verification(execution, owner)
        ):
            yield f"{row} was not returned by {owner.verb} {owner.name}"


def _overtaken_before_verification(execution: ObservedExecution, owner: Operation) -> bool:
    """Whether others may have written before the owner could verify its own lost write."""
    return owner.cut and any(
        other is not owner
        and other.tokens
        and other.outcome in (DONE, UNKNOWN)
        and other.began < owner.ended
        and other.ended > owner.began
        for other in execution.operations
    )


def _wrong_attempt_count(execution: ObservedExecution, owners: Owners) -> Iterator[str]:  # noqa: ARG001
    """The starts are numbered 1, 2, … up to the attempt count."""
    starts = [row.attempt for row in execution.history if row.to_status == "running"]
    if starts != list(range(1, execution.found["attempts"] + 1)):
        yield f"{execution.found['attempts']} attempts, but starts of {starts}"


def _unexplained_answers(execution: ObservedExecution, owners: Owners) -> Iterator[str]:  # noqa: ARG001
    """There is an order of all operations that explains every answer."""
    if left := unexplained(list(steps(execution))):
        names = [f"{each.verb} {each.name}" for each in (s.operation for s in left) if each]
        yield f"no order explains {', '.join(names[:8]) or 'the final row'}"


HISTORIES: Final = "invalid histories"
COUNTS: Final = "attempt counts unequal to starts"
LOST: Final = "acknowledged transitions missing"
CHECKS: Final[dict[str, Callable[[ObservedExecution, Owners], Iterator[str]]]] = {
    HISTORIES: _invalid_history,
    LOST: _lost_transitions,
    "refused calls that took effect": _refused_but_done,
    "transitions without a call": _unowned_transitions,
    COUNTS: _wrong_attempt_count,
    "answers that are not linearizable": _unexplained_answers,
    "impossible times": impossible_times,
}
ERRORS: Final = "errors without a fault"
KINDS: Final = (*CHECKS, ERRORS)
