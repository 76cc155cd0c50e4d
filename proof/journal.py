"""Record each operation of a worker before and after it, and read the records.

Each line is one unbuffered write to a file of the worker. After a kill, every line written is
complete except perhaps the last, and an operation without a line has not begun.
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
DERIVED = {"fingerprint"}
"""Fields that are derived from the others."""

Json = dict[str, Any]


@dataclass
class Operation:
    """One call of a manager's method, as seen by its caller."""

    name: str
    """Unique; every value that it writes contains it."""
    verb: str
    arguments: Json
    began: float
    """By the monotonic clock, which all processes share."""
    ended: float = math.inf
    tokens: dict[str, float] = field(default_factory=dict)
    """Each write token, or the created id, and the time just before the write."""
    outcome: str = UNKNOWN
    answers: list[Json] = field(default_factory=list)
    """The executions that it returned."""
    problem: Json = field(default_factory=dict)
    """Why it was refused: the code, and the facts."""
    cut: bool = False
    """Whether it lost a connection, and had to verify its write."""


def as_json(execution: Execution) -> Json:
    """Return the fields of an execution that are checked."""
    return execution.model_dump(mode="json", exclude=DERIVED)


class Journal:
    """The records of a worker: `with journal.operation(name, verb, arguments) as operation:`."""

    def __init__(self, path: Path) -> None:
        self.worker = path.stem
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._made = 0
        self._current: ContextVar[Operation] = ContextVar("operation")

    def next_name(self) -> str:
        """Return the name for the next operation."""
        self._made += 1
        return f"{self.worker}-{self._made}"

    @contextmanager
    def operation(self, name: str, verb: str, arguments: Json) -> Iterator[Operation]:
        """Record the begin and the end of an operation; expected exceptions are outcomes."""
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
            notes = " ".join(getattr(error, "__notes__", ()))
            operation.outcome = UNKNOWN if "It is unknown" in notes else NOT_DONE
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
        """Record that the current operation is about to write with this token."""
        self._write(op=self._current.get().name, token=token, at=time.monotonic_ns())

    def cut(self, *_: object) -> None:
        """Record that the current operation has lost a connection: a listener of a pool."""
        if current := self._current.get(None):
            self._write(op=current.name, cut=True)

    def _write(self, **line: Any) -> None:
        text = json.dumps(line, default=to_jsonable_python)
        os.write(self._file, f"{text}\n".encode())


def read(paths: Iterable[Path]) -> list[Operation]:
    """Return the operations of all journals; those without an end have an unknown outcome."""
    operations: dict[str, Operation] = {}
    for path in paths:
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # else its writer was killed during the write
                _add_line(operations, json.loads(line))
    return list(operations.values())


def _add_line(operations: dict[str, Operation], line: Json) -> None:
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
