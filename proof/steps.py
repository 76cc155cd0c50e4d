"""Derive the steps that must have happened to an execution, each at one moment."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from . import model
from .journal import DONE, REFUSED, UNKNOWN, Json, Operation
from .linearizability import Step
from .model import Row
from .observed import ObservedExecution

Apply = Callable[[Row | None], Row | None]

WRITES: Final = ("heartbeat", "update_progress", "checkpoint", "advance")
HISTORY_FIELDS: Final = 4
"""How many fields of a row the history determines: a verified transition returns them."""


def steps(observed: ObservedExecution) -> Iterator[Step]:
    """Yield all steps; the last one is the final read of the row."""
    ends = [each.ended for each in observed.operations if each.outcome != UNKNOWN]
    begins = [at for each in observed.operations for at in (each.began, *each.tokens.values())]
    end = max([*ends, *begins]) + 1
    for each in observed.operations:
        bounded = replace(each, ended=min(each.ended, end))
        positions = [n for n, token in enumerate(observed.tokens) if token in each.tokens]
        if positions:
            for position in positions:
                answers = observed.answers(each) if position == positions[-1] else []
                yield from _transition(bounded, position, observed, answers)
        elif each.outcome == DONE:
            for answer in observed.answers(each):
                yield from _answer(bounded, answer)
        elif each.outcome == REFUSED:
            yield from _sequence(bounded, _unmatched(each), _refused(each))
        elif each.outcome == UNKNOWN and _is_observable(each, observed):
            yield Step(each, each.began, each.ended, _applies(each), optional=True)
    yield Step(None, end + 1, end + 1, _is(observed.found))


def _is_observable(operation: Operation, observed: ObservedExecution) -> bool:
    """Return whether the effect of an unknown write that is no transition can be seen."""
    return operation.verb == "retry" or (
        operation.verb in WRITES and observed.is_visible(operation)
    )


def _transition(
    operation: Operation, position: int, observed: ObservedExecution, answers: list[Json]
) -> Iterator[Step]:
    """A transition has its position in the history; a verified one returns what is known of it."""
    applies = _creates(operation, observed.id) if position == 0 else _applies(operation)
    if not answers:
        applications = [applies]
    elif not operation.cut:
        applications = [_results_in(applies, answers[0])]
    elif position == 0:
        applications = [applies, _is(answers[0])]
    else:
        applications = [
            _results_in(applies, answers[0], until=HISTORY_FIELDS),
            _is(answers[0], since=HISTORY_FIELDS),
        ]
    first, *others = _sequence(operation, *applications)
    first.position = position
    first.began = operation.tokens[observed.tokens[position] or ""]
    yield from (first, *others)


def _answer(operation: Operation, answer: Json) -> Iterator[Step]:
    if operation.verb == "get":
        return _sequence(operation, _is(answer))
    if operation.verb == "create":
        return _sequence(operation, _finds(operation), _is(answer))
    applies = _applies(operation)
    if operation.cut and operation.verb in WRITES:
        return _sequence(operation, applies, _is(answer))
    return _sequence(operation, _results_in(applies, answer))


def _sequence(operation: Operation, *applications: Apply) -> Iterator[Step]:
    step = None
    for apply in applications:
        step = Step(operation, operation.began, operation.ended, apply, after=step)
        yield step


def _creates(operation: Operation, id: str) -> Apply:
    return lambda found: model.created(operation, id) if found is None else None


def _finds(operation: Operation) -> Apply:
    """Its INSERT met the key, and the execution with the key has the same type and payload."""
    return lambda found: found if found and model.is_same_work(operation, found) else None


def _applies(operation: Operation) -> Apply:
    return lambda found: None if found is None else model.after(operation, found)


def _results_in(apply: Apply, answer: Json, until: int | None = None) -> Apply:
    expected = model.row(answer)[:until]

    def ends(found: Row | None) -> Row | None:
        row = apply(found)
        return row if row is not None and row[:until] == expected else None

    return ends


def _is(answer: Json, since: int = 0) -> Apply:
    expected = model.row(answer)[since:]
    return lambda found: found if found is not None and found[since:] == expected else None


def _unmatched(operation: Operation) -> Apply:
    """Its UPDATE matched nothing, or its INSERT met the key."""

    def fits(found: Row | None) -> Row | None:
        if operation.verb == "create":
            return found
        return found if found is not None and model.after(operation, found) is None else None

    return fits


def _refused(operation: Operation) -> Apply:
    """The row that was read afterwards explains the refusal."""
    facts = operation.problem.items()

    def fits(found: Row | None) -> Row | None:
        if found is None or not model.refusal(operation, found).items() <= facts:
            return None
        return found

    return fits
