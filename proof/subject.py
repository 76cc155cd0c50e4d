"""An execution as it was found at the end, and all that was done to it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .journal import Json, Operation


class Move(NamedTuple):
    """A row of the history."""

    seq: int
    from_status: str | None
    to_status: str
    attempt: int
    token: str | None


@dataclass
class Subject:
    """One execution."""

    found: Json
    """As the library reads it."""
    token: str | None
    """That of its last write."""
    history: list[Move]
    operations: list[Operation] = field(default_factory=list)
    """Those that have, or may have, to do with it."""
    shown: set[str] = field(default_factory=set)
    """All messages of progress and values of checkpoints that anybody has seen."""

    @property
    def id(self) -> str:
        """Return its id."""
        return str(self.found["id"])

    @property
    def tokens(self) -> list[str | None]:
        """Return what its moves were made with: a creation has the id for a token."""
        return [move.token if n else self.id for n, move in enumerate(self.history)]

    def answers(self, operation: Operation) -> list[Json]:
        """Return what an operation answered of it."""
        return [row for row in operation.answers if row["id"] == self.id]

    def shows(self, operation: Operation) -> bool:
        """Tell whether anybody has seen what an operation writes, be it by another one."""
        written = {operation.arguments.get(name) for name in ("message", "value")}
        return not written.isdisjoint(self.shown)


def assign(operations: Iterable[Operation], subjects: list[Subject]) -> None:
    """Give each execution its operations."""
    by_token: dict[str | None, set[str]] = defaultdict(set)
    for subject in subjects:
        for token in (subject.token, *subject.tokens):
            by_token[token].add(subject.id)
    of: dict[str, list[Operation]] = {subject.id: [] for subject in subjects}
    for each in operations:
        for id in {*_named(each)}.union(*(by_token[token] for token in each.tokens)) & of.keys():
            of[id].append(each)
    for subject in subjects:
        subject.operations = of[subject.id]
        subject.shown = {*_shown(subject)}


def _named(operation: Operation) -> Iterator[str]:
    yield from (row["id"] for row in operation.answers)
    yield operation.arguments.get("id", "")
    yield operation.problem.get("execution_id", "")


def _shown(subject: Subject) -> Iterator[str]:
    rows = [subject.found]
    rows += [row for each in subject.operations for row in subject.answers(each)]
    for row in rows:
        yield (row["progress"] or {}).get("message", "")
        yield from row["checkpoints"].values()
