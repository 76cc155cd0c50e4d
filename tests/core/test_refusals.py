"""The exception for a transition that matched no row, and what exceptions carry."""

import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from execution_core import (
    AlreadyRunning,
    AttemptLost,
    ConcurrentUpdate,
    Execution,
    ExecutionManager,
    ExecutionNotFound,
    ExecutionProblem,
    ExecutionStatus,
    IdempotencyConflict,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
    StaleAttempt,
)
from execution_core.core import state_machine, transitions
from execution_core.core.creation import NewExecution

ID = "0198a000-0000-7000-8000-000000000001"


def execution(status: str, attempts: int = 1, max_attempts: int = 2) -> Execution:
    now = datetime.now(UTC)
    return Execution(
        id=ID, type="a", status=ExecutionStatus(status), attempts=attempts,
        max_attempts=max_attempts, created_at=now, updated_at=now,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("transition", "row", "refused"),
    [
        (transitions.complete(1, None), None, ExecutionNotFound),
        (transitions.complete(1, None), execution("failed"), InvalidStateTransition),
        (transitions.complete(1, 1), execution("running", 2), StaleAttempt),
        (transitions.complete(1, 1), execution("completed", 2), InvalidStateTransition),
        (transitions.complete(1, 1), execution("running", 1), ConcurrentUpdate),
        (transitions.complete(1, None), execution("running"), ConcurrentUpdate),
        (transitions.retry(), execution("failed", 2), MaxRetriesExceeded),
        (transitions.retry(), execution("failed", 1), ConcurrentUpdate),
        (transitions.start(None), execution("retrying", 2), MaxRetriesExceeded),
        (transitions.start(None), execution("pending", 0), ConcurrentUpdate),
        (transitions.fail("x", True, None, None), execution("running", 2), ConcurrentUpdate),
        (transitions.checkpoint("k", 1, 0), execution("running", 1), StaleAttempt),
        (transitions.checkpoint("k", 1, 1), execution("retrying", 1), InvalidStateTransition),
        (transitions.fail("x", False, None, 1), execution("retrying", 1), InvalidStateTransition),
    ],
)
def test_refusal_of_row_has_expected_type(
    transition: transitions.Transition, row: Execution | None, refused: type
) -> None:
    problem = transitions.refusal(transition, ID, row)
    assert type(problem) is refused
    assert isinstance(problem, ExecutionProblem)


def test_start_without_attempt_left_changes_nothing() -> None:
    assert transitions.start(None).apply(execution("retrying", 2), datetime.now(UTC)) is None


def test_change_without_new_status_sets_updated_at() -> None:
    later = datetime(2100, 1, 1, tzinfo=UTC)
    for transition in (
        transitions.checkpoint("k", 1, None),
        transitions.update_progress(1, 2, None, None, None),
    ):
        changed = transition.apply(execution("running"), later)
        assert changed is not None
        assert (changed.status, changed.updated_at) == ("running", later)


@pytest.mark.parametrize(
    "problem",
    [
        ExecutionNotFound(execution_id=ID),
        InvalidStateTransition(
            ID,
            "start",
            state_machine.FAILED,
            state_machine.RUNNING,
            (state_machine.PENDING, state_machine.RETRYING),
        ),
        InvalidStateTransition(ID, "checkpoint", state_machine.FAILED, None, state_machine.LIVE),
        MaxRetriesExceeded(ID, attempts=2, max_attempts=2),
        IdempotencyConflict("key", ID),
        StaleAttempt(ID, 1, current_attempt=2),
        AttemptLost(ID, 1, execution("running", 2)),
        AttemptLost(ID, 1, execution("cancelled", 1)),
        AttemptLost(ID, attempt=1, execution=None),
        AlreadyRunning(execution("running")),
        ConcurrentUpdate("start", ID),
        InvalidValue(argument="payload", reason="is not JSON"),
    ],
    ids=lambda problem: type(problem).__name__,
)
def test_problem_pickled_or_copied_is_equal(problem: ExecutionProblem) -> None:
    for twin in (pickle.loads(pickle.dumps(problem)), copy.copy(problem), copy.deepcopy(problem)):
        assert type(twin) is type(problem)
        assert (str(twin), vars(twin)) == (str(problem), vars(problem))
        assert twin.code == problem.code
        assert "{" not in str(twin)


class FreedKeyStore:
    """A store whose first create meets a key that is freed before the lookup."""

    def __init__(self) -> None:
        self.created = 0

    def create(self, creation: NewExecution) -> Execution | None:
        self.created += 1
        return creation.apply(datetime.now(UTC)) if self.created > 1 else None

    def find_by_idempotency_key(self, key: str) -> None: ...

    def find_by_id(self, id: str) -> None: ...


def test_create_after_key_was_freed_tries_again() -> None:
    store: Any = FreedKeyStore()
    assert ExecutionManager(store).create("a", idempotency_key="k").idempotency_key == "k"
    assert store.created == 2
