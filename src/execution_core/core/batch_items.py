"""The items of a bulk verb: each is checked before anything is written, then sent in chunks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from .creation import NewExecution, new_execution
from .errors import ExecutionProblem, InvalidValue
from .json_values import Json, JsonMembers
from .models import Execution, ExecutionFailure
from .transitions import Transition
from .validation import type_name

T = TypeVar("T")
NewItem = Mapping[str, Any]
"""The arguments of `create`."""
Change = tuple[Any, Transition]
"""An id, and the transition of its execution."""

CHUNK_ROWS: Final = 500
"""The maximum number of items in one statement."""
CHUNK_CHARACTERS: Final = 4_000_000
"""The maximum length of the JSON texts in one statement of several items."""
_ARGUMENTS: Final = frozenset(
    (
        *("type", "payload", "max_attempts", "timeout", "idempotency_key", "parent_id"),
        *("metadata", "start_after"),
    )
)


def check_new_items(items: Iterable[NewItem], max_bytes: int) -> list[NewExecution]:
    """Check the items of `create_many` and build the new executions."""
    return [_new_execution(n, item, max_bytes) for n, item in _numbered(items)]


def _new_execution(number: int, item: NewItem, max_bytes: int) -> NewExecution:
    name = f"items[{number}]"
    if not isinstance(item, Mapping):
        raise InvalidValue(name, f"must be a mapping of arguments of create, not {type_name(item)}")
    if unknown := [each for each in item if each not in _ARGUMENTS]:
        raise InvalidValue(name, f"has {unknown[0]!r:.80}, which is no argument of create")
    if "type" not in item:
        raise InvalidValue(name, "has no type")
    return _check(number, lambda: new_execution(**item, max_bytes=max_bytes))


def check_change_items(
    items: Iterable[tuple[str | Execution, T]],
    argument: str,
    build: Callable[[T, int | None], Transition],
) -> list[Change]:
    """Check the items of `complete_many` or `fail_many` and build their transitions.

    An Execution in place of an id names the attempt that must be running as well.
    """
    return [_change(n, item, argument, build) for n, item in _numbered(items)]


def _change(
    number: int, item: Any, argument: str, build: Callable[[Any, int | None], Transition]
) -> Change:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InvalidValue(
            f"items[{number}]", f"must be a pair of an execution, or its id, and its {argument}"
        )
    target, value = item
    if not isinstance(target, Execution):
        return target, _check(number, lambda: build(value, None))
    return target.id, _check(number, lambda: build(value, target.attempts))


def _numbered(items: object) -> Iterator[tuple[int, Any]]:
    if not isinstance(items, Iterable):
        raise InvalidValue("items", f"must be a list, not {type_name(items)}")
    return enumerate(items)


def _check(number: int, build: Callable[[], T]) -> T:
    try:
        return build()
    except InvalidValue as problem:
        argument = f"items[{number}].{problem.argument}"
        raise InvalidValue(argument, problem.reason) from problem.__cause__
    except ExecutionProblem as problem:
        raise with_number(problem, number) from None


def with_number(problem: ExecutionProblem, number: int) -> ExecutionProblem:
    """Return a problem with a note that says which item it is about."""
    problem.add_note(f"This is about items[{number}] of the call.")
    return problem


def split_into_chunks(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the items in lists, each for one statement; `size` is the length of their JSON."""
    chunk: list[T] = []
    total = 0
    for item in items:
        total += (length := size(item))
        if chunk and (len(chunk) == CHUNK_ROWS or total > CHUNK_CHARACTERS):
            yield chunk
            chunk, total = [], length
        chunk.append(item)
    if chunk:
        yield chunk


def size_of_new(new: NewExecution) -> int:
    """Return the length of the JSON texts of a new execution."""
    return sum(len(each.text) for each in (new.payload, new.metadata, new.checkpoints) if each)


def size_of_change(change: Change) -> int:
    """Return the length of the JSON texts of a transition."""
    return sum(map(_length, change[1].values.values()))


def _length(value: object) -> int:
    match value:
        case Json() | JsonMembers():
            return len(value.text)
        case ExecutionFailure():
            return len(value.message) + len(value.stack or "")
    return 0


def drop_duplicates(values: Sequence[str | None]) -> list[str]:
    """Return the values without None and without duplicates, in order."""
    return [value for value in dict.fromkeys(values) if value is not None]
