"""What must have happened to an execution, at some moment each, for its operations to end so."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from . import model
from .journal import DONE, REFUSED, UNKNOWN, Json, Operation
from .linear import Step
from .model import Row
from .subject import Subject

Follow = Callable[[Row | None], Row | None]

WRITES: Final = ("heartbeat", "update_progress", "checkpoint", "advance")
OF_THE_MOVE: Final = 4
"""How many fields of a row the history knows: what a move is answered with, however late."""


def steps(subject: Subject) -> Iterator[Step]:
    """Give all of them; the last one is that the row was found as it was."""
    ends = [each.ended for each in subject.operations if each.outcome != UNKNOWN]
    begins = [at for each in subject.operations for at in (each.began, *each.tokens.values())]
    end = max([*ends, *begins]) + 1
    for each in subject.operations:
        bounded = replace(each, ended=min(each.ended, end))
        places = [n for n, token in enumerate(subject.tokens) if token in each.tokens]
        if places:
            for place in places:
                answered = subject.answers(each) if place == places[-1] else []
                yield from _moved(bounded, place, subject, answered)
        elif each.outcome == DONE:
            for answer in subject.answers(each):
                yield from _answered(bounded, answer)
        elif each.outcome == REFUSED:
            yield from _in_turn(bounded, _unmatched(each), _refused(each))
        elif (
            each.outcome == UNKNOWN and each.verb in WRITES and subject.shows(each)
        ):  # else nobody can tell
            yield Step(each, each.began, each.ended, _acts(each), may_be=True)
    yield Step(None, end + 1, end + 1, _is(subject.found))


def _moved(
    operation: Operation, place: int, subject: Subject, answers: list[Json]
) -> Iterator[Step]:
    """A move is where the history has it; whoever had to ask for it is told what is known of it."""
    acts = _creates(operation, subject.id) if place == 0 else _acts(operation)
    if not answers:
        then = [acts]
    elif not operation.cut:
        then = [_ending_in(acts, answers[0])]
    elif place == 0:
        then = [acts, _is(answers[0])]
    else:
        then = [_ending_in(acts, answers[0], until=OF_THE_MOVE), _is(answers[0], since=OF_THE_MOVE)]
    first, *others = _in_turn(operation, *then)
    first.place = place
    first.began = operation.tokens[subject.tokens[place] or ""]
    yield from (first, *others)


def _answered(operation: Operation, answer: Json) -> Iterator[Step]:
    if operation.verb == "get":
        return _in_turn(operation, _is(answer))
    if operation.verb == "create":
        return _in_turn(operation, _finds(operation), _is(answer))
    if operation.verb == "retry":
        return _in_turn(operation, _unmatched(operation), _is_retrying(answer))
    acts = _acts(operation)
    if operation.cut and operation.verb in WRITES:
        return _in_turn(operation, acts, _is(answer))
    return _in_turn(operation, _ending_in(acts, answer))


def _in_turn(operation: Operation, *follows: Follow) -> Iterator[Step]:
    step = None
    for follow in follows:
        step = Step(operation, operation.began, operation.ended, follow, behind=step)
        yield step


def _creates(operation: Operation, id: str) -> Follow:
    return lambda found: model.created(operation, id) if found is None else None


def _finds(operation: Operation) -> Follow:
    """Its INSERT met the key, and what has the key is the work that it asked for."""
    return lambda found: found if found and model.is_same_work(operation, found) else None


def _acts(operation: Operation) -> Follow:
    return lambda found: None if found is None else model.after(operation, found)


def _ending_in(follow: Follow, answer: Json, until: int | None = None) -> Follow:
    expected = model.row(answer)[:until]

    def ends(found: Row | None) -> Row | None:
        row = follow(found)
        return row if row is not None and row[:until] == expected else None

    return ends


def _is(answer: Json, since: int = 0) -> Follow:
    expected = model.row(answer)[since:]
    return lambda found: found if found is not None and found[since:] == expected else None


def _is_retrying(answer: Json) -> Follow:
    same = _is(answer)
    return lambda found: same(found) if answer["status"] == "retrying" else None


def _unmatched(operation: Operation) -> Follow:
    """Its UPDATE matched nothing, or its INSERT met the key."""

    def fits(found: Row | None) -> Row | None:
        if operation.verb == "create":
            return found
        return found if found is not None and model.after(operation, found) is None else None

    return fits


def _refused(operation: Operation) -> Follow:
    """The row that was read afterwards is the reason that is given."""
    told = operation.problem.items()

    def fits(found: Row | None) -> Row | None:
        if found is None or not model.refusal(operation, found).items() <= told:
            return None
        return found

    return fits
