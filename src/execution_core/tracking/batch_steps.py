"""The bulk verbs, as steps over a store, sync or async.

A store that lacks the optional members is asked for one execution at a time.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from ..core import transitions, validation
from ..core.batch_items import (
    CHUNK_ROWS,
    Change,
    drop_duplicates,
    size_of_change,
    size_of_new,
    split_into_chunks,
    with_number,
)
from ..core.creation import NewExecution, check_same_work
from ..core.errors import (
    ExecutionNotFound,
    ExecutionProblem,
    IdempotencyConflict,
    InvalidStateTransition,
    InvalidValue,
)
from ..core.models import Execution
from ..core.state_machine import FINISHED, RUNNING, Rule
from ..core.steps import Steps
from ..core.transitions import Transition
from . import verbs

Answer = Execution | ExecutionProblem
Field = Literal["id", "idempotency_key"]
Numbered = tuple[int, str, Transition]


def create_many(store: Any, news: Sequence[NewExecution]) -> Steps[list[Execution]]:
    """Store new executions, or find those that hold their keys; in the order given.

    Keys and parents are looked up first: a refused call writes nothing, unless other callers create
    such a key or delete such a parent meanwhile.
    """
    numbers = {new.id: number for number, new in enumerate(news)}
    answers = yield from _find_holders(store, news, numbers)
    new = [each for each in news if each.id not in answers]
    firsts, repeats = _split_repeats(new, numbers)
    yield from _check_parents(store, firsts, numbers)
    # Callers with the same keys create them in the same order, so that there is no deadlock.
    firsts.sort(key=lambda each: (each.idempotency_key or "", each.id))
    for chunk in split_into_chunks(firsts, size_of_new):
        answers |= yield from _create_chunk(store, chunk, numbers)
    for repeat, first in repeats:
        answers[repeat.id] = answers[first.id]
    return [answers[each.id] for each in news]


def _find_holders(
    store: Any, news: Sequence[NewExecution], numbers: dict[str, int]
) -> Steps[dict[str, Execution]]:
    """Return the executions that hold the keys of new ones, by the ids of the new ones."""
    keys = drop_duplicates([new.idempotency_key for new in news])
    found = yield from _find_each(store, "idempotency_key", keys)
    holders: dict[str, Execution] = {}
    for new in news:
        holder = found.get(new.idempotency_key or "")
        if isinstance(holder, InvalidValue):
            raise with_number(holder, numbers[new.id])
        if holder:
            holders[new.id] = _check_same_work(new, holder, numbers)
    return holders


def _check_same_work(new: NewExecution, holder: Execution, numbers: dict[str, int]) -> Execution:
    try:
        return check_same_work(new, holder)
    except IdempotencyConflict as problem:
        raise with_number(problem, numbers[new.id]) from None


def _split_repeats(
    news: Sequence[NewExecution], numbers: dict[str, int]
) -> tuple[list[NewExecution], list[tuple[NewExecution, NewExecution]]]:
    """Return the first of each key, and the others with the first of their key."""
    firsts: dict[str, NewExecution] = {}
    repeats: list[tuple[NewExecution, NewExecution]] = []
    for new in news:
        first = firsts.setdefault(new.idempotency_key or new.id, new)
        if first is not new:
            try:
                _check_same_work(new, first.apply(datetime.now(UTC)), numbers)
            except IdempotencyConflict as problem:
                problem.add_note(
                    f"items[{numbers[first.id]}] has the same key, and was not created either."
                )
                raise
            repeats.append((new, first))
    return [new for new in news if firsts.get(new.idempotency_key or new.id) is new], repeats


def _check_parents(
    store: Any, news: Sequence[NewExecution], numbers: dict[str, int]
) -> Steps[None]:
    found = yield from _find_each(store, "id", drop_duplicates([new.parent_id for new in news]))
    for new in news:
        parent = found.get(new.parent_id or "")
        if new.parent_id is None or isinstance(parent, InvalidValue):
            continue
        if problem := verbs.parent_problem(new.parent_id, parent):
            raise with_number(problem, numbers[new.id])


def _create_chunk(
    store: Any, chunk: Sequence[NewExecution], numbers: dict[str, int]
) -> Steps[dict[str, Execution]]:
    created: dict[str, Execution] = {}
    if (create := getattr(store, "create_many", None)) and chunk[1:]:
        answers: list[Execution | None] = yield lambda: create(chunk)
        created = {each.id: each for each in answers if each}
        rest = [new for new in chunk if new.id not in created]
        # Other callers have created these keys meanwhile.
        created |= yield from _find_holders(store, rest, numbers)
    for new in chunk:
        if new.id not in created:
            try:
                created[new.id] = yield from verbs.create(store, new)
            except ExecutionProblem as problem:
                raise with_number(problem, numbers[new.id]) from None
    return created


def change_each(store: Any, changes: Sequence[Change], *, joined: bool) -> Steps[list[Answer]]:
    """Make transitions; return for each the execution or the refusal, in the order given.

    `joined` is whether the store runs in the caller's transaction.
    """
    answers = yield from _change_in_rounds(store, changes)
    if not joined:
        changed = [each for each in answers if isinstance(each, Execution)]
        finished = [each for each in changed if each.status in FINISHED]
        for parent in drop_duplicates([each.parent_id for each in finished]):
            yield from verbs.end_parents(store, parent)
    return answers


def _change_in_rounds(store: Any, changes: Sequence[Change]) -> Steps[list[Answer]]:
    """Make transitions of distinct executions, then those of executions that come again."""
    answers: dict[int, Answer] = {}
    changed: dict[str, Execution] = {}
    waiting: list[Numbered] = []
    for number, (given, transition) in enumerate(changes):
        try:
            waiting.append((number, validation.execution_id(given), transition))
        except ExecutionNotFound as problem:
            answers[number] = problem
    while waiting:
        current: dict[str, Numbered] = {}
        later: list[Numbered] = []
        for each in waiting:
            number, id, transition = each
            if id in changed:
                answers[number] = _refuse_repeat(transition, changed[id])
            elif current.setdefault(id, each) is not each:
                later.append(each)
        yield from _change_distinct(store, [*current.values()], answers)
        for number, id, _ in current.values():
            if isinstance(answer := answers[number], Execution):
                changed[id] = answer
        waiting = later
    return [answers[number] for number in range(len(changes))]


def _refuse_repeat(transition: Transition, changed: Execution) -> ExecutionProblem:
    rule = transition.rule
    problem = InvalidStateTransition(
        changed.id, rule.verb, changed.status, rule.moves[-1].target, (RUNNING,)
    )
    problem.add_note("An earlier item of the same call changed it.")
    return problem


def _change_distinct(
    store: Any, items: Sequence[Numbered], answers: dict[int, Answer]
) -> Steps[None]:
    """Make transitions of distinct executions, one rule after the other."""
    by_rule: dict[Rule, list[Numbered]] = defaultdict(list)
    for each in sorted(items, key=lambda item: item[1]):
        by_rule[each[2].rule].append(each)
    refused: list[Numbered] = []
    for same_rule in by_rule.values():
        for chunk in split_into_chunks(same_rule, lambda item: size_of_change(item[1:])):
            updated = yield from _update_chunk(store, [(id, each) for _, id, each in chunk])
            for item, answer in zip(chunk, updated, strict=True):
                if answer is None:
                    refused.append(item)
                else:
                    answers[item[0]] = answer
    found = yield from _find_each(store, "id", [id for _, id, _ in refused])
    for number, id, transition in refused:
        existing = found.get(id)
        if isinstance(existing, InvalidValue):
            answers[number] = existing
        else:
            answers[number] = transitions.refusal(transition, id, existing)


def _update_chunk(
    store: Any, chunk: Sequence[tuple[str, Transition]]
) -> Steps[list[Answer | None]]:
    if (update := getattr(store, "update_each", None)) and chunk[1:]:
        answers: list[Answer | None] = yield lambda: update(chunk)
        return answers
    answers = []
    for id, transition in chunk:
        try:
            answers.append((yield lambda: store.update(id, transition)))  # noqa: B023 - called at once
        except InvalidValue as problem:  # its row cannot be read
            answers.append(problem)
    return answers


def _find_each(
    store: Any, field: Field, values: Sequence[str]
) -> Steps[dict[str, Execution | InvalidValue]]:
    """Return the executions with these ids or keys; InvalidValue for one that cannot be read."""
    found: dict[str, Execution | InvalidValue] = {}
    for start in range(0, len(values), CHUNK_ROWS):
        found |= yield from _find_chunk(store, field, values[start : start + CHUNK_ROWS])
    return found


def _find_chunk(
    store: Any, field: Field, values: Sequence[str]
) -> Steps[dict[str, Execution | InvalidValue]]:
    if (find := getattr(store, "find_many", None)) and values[1:]:
        try:
            rows: list[Execution] = yield lambda: find(field, values)
        except InvalidValue:
            pass  # one cannot be read: find out which
        else:
            return {getattr(row, field): row for row in rows}
    find_one = store.find_by_id if field == "id" else store.find_by_idempotency_key
    found: dict[str, Execution | InvalidValue] = {}
    for value in values:
        try:
            if row := (yield lambda: find_one(value)):  # noqa: B023 - called at once
                found[value] = row
        except InvalidValue as problem:
            found[value] = problem
    return found
