"""What a worker was about to do, and what came of it: written down before and after, and read.

Each line is one write to a file of the worker's own, without a buffer: what a worker that was
killed has written is there, and what it has not written it has not begun.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python
from sqlalchemy.exc import SQLAlchemyError

from execution_core import Execution, ExecutionProblem

DONE, REFUSED, NOT_DONE, UNKNOWN = "done", "refused", "not done", "unknown"
OUTCOMES = (DONE, REFUSED, NOT_DONE, UNKNOWN)
UNSEEN = {"fingerprint"}
"""What follows from the rest."""

Json = dict[str, Any]


@dataclass
class Operation:
    """One call of a manager's method, as its caller saw it."""

    name: str
    """Its own; whatever it writes holds it."""
    verb: str
    arguments: Json
    began: float
    """By the one clock of the machine, which all processes share."""
    ended: float = math.inf
    tokens: dict[str, float] = field(default_factory=dict)
    """Each token that it wrote with, or the id that it created, and when it was about to."""
    outcome: str = UNKNOWN
    answers: list[Json] = field(default_factory=list)
    """Each execution that it returned."""
    problem: Json = field(default_factory=dict)
    """Why it was refused: the code, and the facts."""
    cut: bool = False
    """Whether it lost a connection, and had to find out what it had done."""


def seen(execution: Execution) -> Json:
    """Return what is judged of an execution."""
    return execution.model_dump(mode="json", exclude=UNSEEN)


class Journal:
    """A worker's own: `with journal.operation("start", id=id) as answer: answer(call())`."""

    def __init__(self, path: Path) -> None:
        self.worker = path.stem
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._made = 0
        self._current: ContextVar[Operation] = ContextVar("operation")

    def next_name(self) -> str:
        """Name the operation that is next."""
        self._made += 1
        return f"{self.worker}-{self._made}"

    @contextmanager
    def operation(self, name: str, verb: str, arguments: Json) -> Iterator[Operation]:
        """Write down that it begins, and how it ends. What it raises, if foreseen, is an end."""
        operation = Operation(name, verb, arguments, time.monotonic_ns())
        self._write(op=name, verb=verb, arguments=arguments, at=operation.began)
        current = self._current.set(operation)
        try:
            yield operation
            operation.outcome = DONE
        except ExecutionProblem as problem:
            lost = problem.code == "CONNECTION_LOST"
            operation.outcome = NOT_DONE if lost else REFUSED
            operation.problem = {"code": problem.code, **vars(problem)}
        except SQLAlchemyError as error:
            operation.problem = {"error": f"{type(error).__name__}: {error}"[:300]}
        finally:
            self._current.reset(current)
        self._write(
            op=name,
            outcome=operation.outcome,
            answers=operation.answers,
            problem=operation.problem,
            at=time.monotonic_ns(),
        )

    def token(self, token: str) -> None:
        """Write down that the current operation is about to write with this token."""
        self._write(op=self._current.get().name, token=token, at=time.monotonic_ns())

    def cut(self, *_: object) -> None:
        """Write down that the current operation has lost a connection: listens to a pool."""
        if current := self._current.get(None):
            self._write(op=current.name, cut=True)

    def _write(self, **line: Any) -> None:
        text = json.dumps(line, default=to_jsonable_python)
        os.write(self._file, f"{text}\n".encode())


def read(paths: Iterable[Path]) -> list[Operation]:
    """Return the operations of all journals; those without an end are unknown."""
    operations: dict[str, Operation] = {}
    for path in paths:
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # else its writer was killed half way
                _take(operations, json.loads(line))
    return list(operations.values())


def _take(operations: dict[str, Operation], line: Json) -> None:
    if "verb" in line:
        name = line["op"]
        operations[name] = Operation(name, line["verb"], line["arguments"], line["at"])
        return
    operation = operations[line["op"]]
    if "token" in line:
        operation.tokens.setdefault(line["token"], line["at"])
        return
    if "cut" in line:
        operation.cut = True
        return
    operation.outcome = line["outcome"]
    operation.answers, operation.problem = line["answers"], line["problem"]
    if operation.outcome != UNKNOWN:
        operation.ended = line["at"]
