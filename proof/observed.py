"""An execution as read at the end, with all operations on it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .journal import Json, Operation


class HistoryRow(NamedTuple):
    """A row of the history."""

    seq: int
    from_status: str | None
    to_status: str
    attempt: int
    token: str | None


@dataclass
class ObservedExecution:
    """One execution, its history and its operations."""

    found: Json
    """The row as the library reads it."""
    token: str | None
    """The token of its last write."""
    history: list[HistoryRow]
    operations: list[Operation] = field(default_factory=list)
    """The operations that concern it, or may concern it."""
    visible_values: set[str] = field(default_factory=set)
    """All progress messages and checkpoint values in any answer."""

    @property
    def id(self) -> str:
        """Return its id."""
        return str(self.found["id"])

    @property
    def tokens(self) -> list[str | None]:
        """Return the tokens of its transitions; the token of a creation is the id."""
        return [row.token if n else self.id for n, row in enumerate(self.history)]

    def answers(self, operation: Operation) -> list[Json]:
        """Return the answers of an operation that are about it."""
        return [row for row in operation.answers if row["id"] == self.id]

    def is_visible(self, operation: Operation) -> bool:
        """Return whether any answer shows the value that an operation writes."""
        written = {operation.arguments.get(name) for name in ("message", "value")}
        return not written.isdisjoint(self.visible_values)


def assign(operations: Iterable[Operation], executions: list[ObservedExecution]) -> None:
    """Assign the operations to the executions that they concern."""
    by_token: dict[str | None, set[str]] = defaultdict(set)
    for execution in executions:
        for token in (execution.token, *execution.tokens):
            by_token[token].add(execution.id)
    operations_of: dict[str, list[Operation]] = {execution.id: [] for execution in executions}
    for each in operations:
        for id in {*_mentioned_ids(each)}.union(
            *(by_token[token] for token in each.tokens)
        ) & operations_of.keys():
            operations_of[id].append(each)
    for execution in executions:
        execution.operations = operations_of[execution.id]
        execution.visible_values = {*_visible_values(execution)}


def _mentioned_ids(operation: Operation) -> Iterator[str]:
    yield from (row["id"] for row in operation.answers)
    yield operation.arguments.get("id", "")
    yield operation.problem.get("execution_id", "")


def _visible_values(execution: ObservedExecution) -> Iterator[str]:
    rows = [execution.found]
    rows += [row for each in execution.operations for row in execution.answers(each)]
    for row in rows:
        yield (row["progress"] or {}).get("message", "")
        yield from row["checkpoints"].values()
