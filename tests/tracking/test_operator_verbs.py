"""What an operator does to an execution: cancel, retry, release, sweep with retry."""

from datetime import timedelta

import pytest

from execution_core import (
    Backoff,
    Execution,
    ExecutionFailure,
    ExecutionManager,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
    StaleAttempt,
)

from ..support.states import bring_to

HOUR = timedelta(hours=1)


def delayed_retry(manager: ExecutionManager, max_attempts: int = 2) -> str:
    """Return the id of a retrying execution that is due in an hour."""
    id = manager.create("a", max_attempts=max_attempts).id
    manager.start(id)
    manager.fail(id, "no", retry_after=HOUR)
    return id


def test_cancel_retrying_execution_is_final(any_manager: ExecutionManager) -> None:
    cancelled = any_manager.cancel(delayed_retry(any_manager), "withdrawn")
    assert (cancelled.status, cancelled.due_at, cancelled.error) == ("cancelled", None, None)
    assert cancelled.metadata == {"cancellation_reason": "withdrawn"}
    assert cancelled.completed_at == cancelled.updated_at
    with pytest.raises(InvalidStateTransition):
        any_manager.start(cancelled.id)
    assert any_manager.claim() == []


def test_retry_of_waiting_execution_makes_it_due(any_manager: ExecutionManager) -> None:
    waiting = any_manager.create("a", start_after=HOUR).id, delayed_retry(any_manager)
    for id, status in zip(waiting, ("pending", "retrying"), strict=True):
        before = any_manager.get(id)
        later = any_manager.retry(id, retry_after=2 * HOUR)
        assert later.due_at == later.updated_at + 2 * HOUR
        now = any_manager.retry(id)
        assert (now.status, now.due_at, now.error) == (status, now.updated_at, before.error)
        assert (now.attempts, now.max_attempts) == (before.attempts, before.max_attempts)
    assert {each.id for each in any_manager.claim(limit=5)} == {*waiting}


def test_retry_after_delays_next_attempt(any_manager: ExecutionManager) -> None:
    failed = bring_to(any_manager, "failed")
    again = any_manager.retry(failed.id, retry_after=HOUR)
    assert (again.status, again.due_at) == ("retrying", again.updated_at + HOUR)
    assert any_manager.claim() == []


@pytest.mark.parametrize("state", ["failed-last", "timed_out-last"])
def test_retry_extra_attempts_allows_more(any_manager: ExecutionManager, state: str) -> None:
    ended = bring_to(any_manager, state)
    with pytest.raises(MaxRetriesExceeded, match="extra_attempts=1"):
        any_manager.retry(ended.id)
    again = any_manager.retry(ended.id, extra_attempts=1)
    assert (again.status, again.attempts, again.max_attempts) == ("retrying", 2, 3)
    for _ in range(2):  # of those that are used: a repeated call adds none
        assert any_manager.retry(ended.id, extra_attempts=1).max_attempts == 3
    assert any_manager.start(ended.id).attempts == 3


def test_retry_extra_attempts_keeps_larger_maximum(any_manager: ExecutionManager) -> None:
    id = delayed_retry(any_manager, max_attempts=9)
    assert any_manager.retry(id, extra_attempts=3).max_attempts == 9
    assert any_manager.retry(id, extra_attempts=10_000).max_attempts == 10_001


@pytest.mark.parametrize("state", ["running", "completed", "cancelled"])
def test_retry_in_other_states_refused(any_manager: ExecutionManager, state: str) -> None:
    before = bring_to(any_manager, state)
    with pytest.raises(InvalidStateTransition) as caught:
        any_manager.retry(before.id, extra_attempts=1)
    assert caught.value.sources == ("pending", "failed", "retrying", "timed_out")
    assert any_manager.get(before.id) == before


@pytest.mark.parametrize("extra", [-1, 10_001, True, 1.0, None, "1"])
def test_retry_invalid_extra_attempts_refused(any_manager: ExecutionManager, extra: object) -> None:
    id = bring_to(any_manager, "failed").id
    with pytest.raises(InvalidValue, match=r"^extra_attempts "):
        any_manager.retry(id, extra_attempts=extra)  # type: ignore[arg-type]


def test_release_hands_attempt_back(any_manager: ExecutionManager) -> None:
    id = any_manager.create("a", max_attempts=1).id
    (claimed,) = any_manager.claim(worker="host")
    released = any_manager.release(id, attempt=claimed.attempts)
    assert (released.status, released.attempts, released.max_attempts) == ("retrying", 1, 2)
    assert (released.error, released.due_at) == (None, released.updated_at)
    (again,) = any_manager.claim()
    assert again.attempts == 2
    with pytest.raises(StaleAttempt):
        any_manager.release(id, attempt=1)
    with pytest.raises(StaleAttempt):
        any_manager.complete(id, attempt=1)


def test_release_at_largest_maximum_keeps_it(any_manager: ExecutionManager) -> None:
    largest = 2**31 - 1
    id = any_manager.create("a", max_attempts=largest).id
    any_manager.start(id)
    assert any_manager.release(id).max_attempts == largest


def test_sweep_retry_allows_another_attempt(any_manager: ExecutionManager) -> None:
    used_up = any_manager.create("a", timeout=timedelta(milliseconds=1)).id
    left = any_manager.create("a", timeout=timedelta(milliseconds=1), max_attempts=2).id
    silent = any_manager.create("a", max_attempts=2).id
    for id in (used_up, left, silent):
        any_manager.start(id)
    found: dict[str, Execution] = {}
    while len(found) < 3:  # until the deadlines and the silence have passed
        swept = any_manager.sweep(stalled_after=timedelta(milliseconds=1), retry=True)
        found |= {each.id: each for each in swept}
    assert {id: (each.status, each.error and each.error.code) for id, each in found.items()} == {
        used_up: ("timed_out", "timeout"),
        left: ("retrying", "timeout"),
        silent: ("retrying", "stalled"),
    }
    assert found[left].due_at == found[left].updated_at
    assert {each.id for each in any_manager.claim(limit=5)} == {left, silent}


def test_sweep_retry_must_be_a_flag(any_manager: ExecutionManager) -> None:
    with pytest.raises(InvalidValue, match=r"^retry "):
        any_manager.sweep(retry=1)  # type: ignore[arg-type]


def test_fail_with_delay_implies_another_attempt(any_manager: ExecutionManager) -> None:
    for error in ("no", ValueError("no"), ExecutionFailure(message="no")):
        id = any_manager.create("a", max_attempts=2).id
        any_manager.start(id)
        failed = any_manager.fail(id, error, retry_after=HOUR)
        assert (failed.status, failed.due_at) == ("retrying", failed.updated_at + HOUR)
        assert failed.error is not None
        assert failed.error.retryable


def test_fail_with_delay_and_not_retryable_refused(any_manager: ExecutionManager) -> None:
    before = bring_to(any_manager, "running")
    with pytest.raises(InvalidValue, match=r"^retry_after makes no sense with retryable=False"):
        any_manager.fail(before.id, "no", retryable=False, retry_after=HOUR)
    assert any_manager.get(before.id) == before


def test_attempt_backoff_without_retry_on_refused(any_manager: ExecutionManager) -> None:
    with pytest.raises(InvalidValue, match=r"^backoff needs retry_on"):
        any_manager.attempt(bring_to(any_manager, "pending").id, backoff=Backoff(HOUR))
    with pytest.raises(InvalidValue, match=r"^backoff needs retry_on"):
        any_manager.tracked("a", backoff=Backoff(HOUR))


def test_claim_takes_failing_execution_after_those_due_already(
    any_manager: ExecutionManager,
) -> None:
    """One that always fails without a delay does not block those behind it."""
    bad = any_manager.create("a", max_attempts=50).id
    good = [any_manager.create("a").id for _ in range(3)]
    taken = []
    for _ in range(5):
        (claimed,) = any_manager.claim()
        taken.append(claimed.id)
        if claimed.id == bad:
            any_manager.fail(bad, "no", retryable=True)
    assert taken == [bad, *good, bad]
