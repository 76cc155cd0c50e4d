"""The base class of all refusals, and `InvalidValue`, which the models raise as well."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar


class ExecutionProblemCode(StrEnum):
    """The name of a problem for programs: `problem.code == ExecutionProblemCode.NOT_FOUND`."""

    NOT_FOUND = "NOT_FOUND"
    INVALID_STATE_TRANSITION = "INVALID_STATE_TRANSITION"
    MAX_RETRIES_EXCEEDED = "MAX_RETRIES_EXCEEDED"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    STALE_ATTEMPT = "STALE_ATTEMPT"
    ATTEMPT_LOST = "ATTEMPT_LOST"
    ALREADY_RUNNING = "ALREADY_RUNNING"
    CONCURRENT_UPDATE = "CONCURRENT_UPDATE"
    CONNECTION_LOST = "CONNECTION_LOST"
    INVALID_VALUE = "INVALID_VALUE"


class ExecutionProblem(Exception):  # noqa: N818 - a refusal is an answer rather than an error
    """Base class of all refusals: `except ExecutionProblem as problem: print(problem.code)`."""

    code: ClassVar[ExecutionProblemCode]
    template: ClassVar[str]

    def __str__(self) -> str:
        return self.template.format(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception pickles its args, which dataclasses leave empty when built by keyword.
        return type(self), tuple(getattr(self, fact.name) for fact in fields(self))  # type: ignore[arg-type]


@dataclass(eq=False)
class InvalidValue(ExecutionProblem, ValueError):  # noqa: N818
    """An argument cannot be stored or makes no sense, or stored JSON does not fit a type."""

    code = ExecutionProblemCode.INVALID_VALUE
    template = "{0.argument} {0.reason}"
    argument: str
    reason: str
