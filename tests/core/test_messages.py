"""Messages: what failed, for which execution, why, and what to do."""

import pytest

from execution_core import (
    ExecutionManager,
    ExecutionProblem,
    IdempotencyConflict,
    MaxRetriesExceeded,
)
from execution_core.core.errors import (
    AttemptLost,
    ConcurrentUpdate,
    ConnectionLost,
    ExecutionNotFound,
    InvalidStateTransition,
    StaleAttempt,
)
from execution_core.core.state_machine import COMPLETED, LIVE, PENDING, RUNNING

from ..support.memory import memory_store

ID = "0198a000-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            InvalidStateTransition(ID, "complete", COMPLETED, COMPLETED, (RUNNING,)),
            f"Cannot complete execution {ID}: its status is completed, not running.",
        ),
        (
            InvalidStateTransition(ID, "cancel", COMPLETED, None, (PENDING, RUNNING)),
            f"Cannot cancel execution {ID}: its status is completed, not pending or running.",
        ),
        (
            InvalidStateTransition(ID, "checkpoint", COMPLETED, None, LIVE),
            (
                f"Cannot set a checkpoint of execution {ID}: "
                "its status is completed, not pending, running or retrying."
            ),
        ),
        (
            MaxRetriesExceeded(ID, 1, 1),
            (
                f"Cannot start execution {ID}: it has used its only attempt (max_attempts=1). "
                "To allow another one, retry it with extra_attempts=1 (--extra-attempts 1); replay"
                " repeats the work as a new execution."
            ),
        ),
        (
            MaxRetriesExceeded(ID, 3, 3, "retry"),
            (
                f"Cannot retry execution {ID}: it has used all 3 attempts (max_attempts=3). "
                "To allow another one, retry it with extra_attempts=1 (--extra-attempts 1); replay"
                " repeats the work as a new execution."
            ),
        ),
        (
            StaleAttempt(ID, 1, 2),
            (
                f"Attempt 1 does not own execution {ID}: attempt 2 is running. "
                "Stop the work of attempt 1."
            ),
        ),
        (
            AttemptLost(ID, 1, None),
            f"Attempt 1 no longer owns execution {ID}: it was deleted. Stop working on it.",
        ),
        (
            ConcurrentUpdate("claim", None),
            (
                "Cannot claim executions: another transaction interfered. Nothing was changed: "
                "try again; a transaction of your own, from its beginning."
            ),
        ),
        (
            ConnectionLost("get", ID),
            (
                f"Cannot read execution {ID}: the connection to the database was lost several times"
                " in a row. Nothing was changed: try again."
            ),
        ),
        (
            ExecutionNotFound("x"),
            "No execution has the id 'x': it was deleted, or never created in this database.",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ExecutionProblem) else "",
)
def test_message_says_what_why_and_what_to_do(problem: ExecutionProblem, message: str) -> None:
    assert str(problem) == message


@pytest.mark.parametrize(
    ("type", "payload", "differs"),
    [
        ("a", {"n": 2}, "payload"),
        ("b", {"n": 1}, "type"),
        ("b", None, "type and payload"),
        ("a", {"n": True}, "payload"),
        ("a", {"n": 1.0}, "payload"),
    ],
)
def test_idempotency_conflict_names_what_differs(type: str, payload: object, differs: str) -> None:
    manager = ExecutionManager(memory_store())
    first = manager.create("a", {"n": 1}, idempotency_key="k")
    with pytest.raises(IdempotencyConflict) as caught:
        manager.create(type, payload, idempotency_key="k")
    assert (caught.value.execution_id, caught.value.differs) == (first.id, differs)
    assert f"belongs to execution {first.id}, which has another {differs}." in str(caught.value)


def test_start_and_retry_without_attempts_name_the_verb() -> None:
    manager = ExecutionManager(memory_store())
    job = manager.create("a")
    manager.start(job.id)
    manager.fail(job.id, "no")
    with pytest.raises(MaxRetriesExceeded, match=f"Cannot retry execution {job.id}: "):
        manager.retry(job.id)


def test_create_repeated_with_large_payload_returns_it() -> None:
    manager = ExecutionManager(memory_store(), max_json_bytes=2**26)
    large = "x" * (2**24 + 1)
    first = manager.create("a", large, idempotency_key="k")
    assert manager.create("a", large, idempotency_key="k") == first
    with pytest.raises(IdempotencyConflict) as caught:
        manager.create("b", large, idempotency_key="k")
    assert caught.value.differs == "type"
