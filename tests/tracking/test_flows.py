"""Typical lifecycles, and what is read afterwards."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from execution_core import ExecutionFailure, ExecutionManager, ExecutionNotFound, ExecutionStatus


def test_lifecycle_from_create_to_complete(any_manager: ExecutionManager) -> None:
    m = any_manager
    execution = m.create("my-task", {"user_id": "123"}, max_attempts=3, metadata={"by": "ada"})
    assert execution.status is ExecutionStatus.PENDING
    assert (execution.attempts, execution.max_attempts) == (0, 3)
    assert execution.checkpoints == {}
    assert (execution.progress, execution.started_at, execution.worker) == (None, None, None)
    assert execution.created_at.tzinfo is UTC
    assert m.start(execution.id, worker="host-1").worker == "host-1"
    halfway = m.update_progress(execution.id, 50, 100, message="Processing items")
    assert halfway.progress is not None
    assert halfway.progress.model_dump() == {
        "current": 50,
        "total": 100,
        "percent": 50,
        "message": "Processing items",
    }
    m.checkpoint(execution.id, "last_index", 49)
    done = m.complete(execution.id, {"result": "success"})
    assert done.result == {"result": "success"}
    assert done.payload == {"user_id": "123"}
    assert done.metadata == {"by": "ada"}
    assert done.checkpoints == {"last_index": 49}
    assert m.get(done.id) == done


def test_retry_of_retrying_then_start_completes(any_manager: ExecutionManager) -> None:
    m = any_manager
    id = m.create("pay", max_attempts=2).id
    m.start(id)
    assert m.fail(id, "declined", retryable=True).status == "retrying"
    assert m.retry(id).status == "retrying"
    assert m.start(id).attempts == 2
    assert m.complete(id).status == "completed"


def test_start_of_retrying_needs_no_retry(any_manager: ExecutionManager) -> None:
    id = any_manager.create("pay", max_attempts=2).id
    any_manager.start(id)
    any_manager.fail(id, "declined", retryable=True)
    assert any_manager.start(id).status == "running"


def test_timeout_then_retry_sets_new_deadline(any_manager: ExecutionManager) -> None:
    m = any_manager
    id = m.create("pay", max_attempts=2, timeout=timedelta(seconds=30)).id
    first = m.start(id)
    assert first.started_at is not None
    assert first.deadline_at == first.started_at + timedelta(seconds=30)
    assert m.timeout(id).status == "timed_out"
    assert m.retry(id).status == "retrying"
    second = m.start(id)
    assert second.started_at is not None
    assert second.deadline_at == second.started_at + timedelta(seconds=30)


def test_retry_keeps_checkpoints_and_progress(any_manager: ExecutionManager) -> None:
    m = any_manager
    id = m.create("batch", max_attempts=2).id
    m.start(id)
    m.update_progress(id, 5, 10)
    m.checkpoint(id, "last_index", 4)
    m.checkpoint(id, "other", {"deep": {"a": 1}})
    m.fail(id, "killed", retryable=True)
    again = m.start(id)
    assert again.checkpoints == {"last_index": 4, "other": {"deep": {"a": 1}}}
    assert again.progress is not None
    assert again.progress.current == 5
    assert m.checkpoint(id, "other", {"deep": {"b": 2}}).checkpoints["other"] == {"deep": {"b": 2}}


def test_cancel_keeps_metadata(any_manager: ExecutionManager) -> None:
    m = any_manager
    reasoned = m.cancel(m.create("a", metadata={"by": "ada"}).id, "customer withdrew")
    assert reasoned.metadata == {"by": "ada", "cancellation_reason": "customer withdrew"}
    silent = m.cancel(m.create("a", metadata={"by": "ada"}).id)
    assert silent.metadata == {"by": "ada"}


def test_fail_describes_error(any_manager: ExecutionManager) -> None:
    m = any_manager

    def failed(error: ExecutionFailure | BaseException | str, **options: Any) -> ExecutionFailure:
        id = m.create("a", max_attempts=9).id
        m.start(id)
        recorded = m.fail(id, error, **options)
        assert recorded.error is not None
        assert recorded.error == m.get(id).error
        assert recorded.status == ("retrying" if recorded.error.retryable else "failed")
        return recorded.error

    assert failed("broken") == ExecutionFailure(message="broken")
    assert failed("broken", retryable=True).retryable
    assert failed(ExecutionFailure(message="x", code="E1", retryable=True)).code == "E1"
    assert not failed(ExecutionFailure(message="x", retryable=True), retryable=False).retryable
    try:
        raise KeyError("missing")
    except KeyError as exc:
        raised = failed(exc)
    assert (raised.message, raised.code) == ("'missing'", "KeyError")
    assert raised.stack is not None
    assert "test_flows.py" in raised.stack
    assert failed(KeyboardInterrupt()).message == "KeyboardInterrupt"


def test_progress_percent_is_computed(any_manager: ExecutionManager) -> None:
    id = any_manager.create("a").id

    def percent(current: int, total: int, given: float | None = None) -> float:
        progress = any_manager.update_progress(id, current, total, percent=given).progress
        assert progress is not None
        return progress.percent

    assert percent(0, 0) == 0
    assert percent(5, 0) == 0
    assert percent(1, 3) == 33.33
    assert percent(999_999_999, 1_000_000_000) == 99.99
    assert percent(2**62 - 1, 2**62) < 100
    assert percent(7, 7) == 100
    assert percent(9, 7) == 100
    assert percent(1, 3, 12.5) == 12.5


def test_list_filters_and_pages(any_manager: ExecutionManager) -> None:
    m = any_manager
    parent = m.create("batch")
    children = [m.create("item", n, parent_id=parent.id) for n in range(5)]
    m.cancel(children[0].id)
    m.start(children[1].id)
    newest_first = [c.id for c in reversed(children)]

    def ids(**conditions: Any) -> list[str]:
        return [e.id for e in m.list(**conditions)]

    assert ids() == [*newest_first, parent.id]
    assert ids(type="item") == ids(parent_id=parent.id) == newest_first
    assert ids(type="nothing") == ids(status=[]) == []
    assert ids(status="cancelled") == [children[0].id]
    assert ids(status=["cancelled", ExecutionStatus.RUNNING]) == [children[1].id, children[0].id]
    assert ids(status={"pending"}, type="item", limit=2) == newest_first[:2]
    first = ids(limit=4)
    second = ids(limit=4, before=first[-1])
    assert first + second == [*newest_first, parent.id]
    assert ids(limit=4, before=second[-1]) == []


def test_delete_keeps_children(any_manager: ExecutionManager) -> None:
    m = any_manager
    parent = m.create("batch", idempotency_key="once")
    child = m.create("item", parent_id=parent.id)
    assert m.delete(parent.id) is None
    assert m.get(child.id).parent_id is None
    for missing in (lambda: m.get(parent.id), lambda: m.delete(parent.id)):
        with pytest.raises(ExecutionNotFound) as caught:
            missing()
        assert caught.value.execution_id == parent.id
    assert m.find_by_idempotency_key("once") is None
    assert m.create("batch", idempotency_key="once").id != parent.id


NO_UUIDS = ["", "nope", "0", "x" * 2_000_000, "a\0b", "\ud800", None, 7, 10**9999]


@pytest.mark.parametrize("id", NO_UUIDS, ids=range(len(NO_UUIDS)))
def test_get_invalid_uuid_is_not_found(any_manager: ExecutionManager, id: str) -> None:
    m = any_manager
    for verb in (m.get, m.start, m.complete, m.delete, m.retry, m.cancel, m.timeout):
        with pytest.raises(ExecutionNotFound) as caught:
            verb(id)
        assert len(str(caught.value)) < 200
    with pytest.raises(ExecutionNotFound):
        m.create("a", parent_id=id if id is not None else "")


def test_get_upper_case_id_is_found(any_manager: ExecutionManager) -> None:
    created = any_manager.create("a")
    assert any_manager.get(created.id.upper()) == created


def test_get_uuid_object_is_accepted(any_manager: ExecutionManager) -> None:
    """The views of PostgreSQL return UUID objects."""
    created = any_manager.create("a")
    id: Any = uuid.UUID(created.id)
    assert any_manager.get(id) == created
    any_manager.delete(id)
    for verb in (any_manager.get, any_manager.delete, any_manager.start):
        with pytest.raises(ExecutionNotFound, match=created.id):
            verb(id)


def test_times_come_from_the_database(manager: ExecutionManager) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    id = manager.create("a").id
    started = manager.start(id)
    done = manager.complete(id)
    assert started.started_at is not None
    assert done.completed_at is not None
    assert before < done.created_at <= started.started_at <= done.completed_at
    assert done.completed_at < datetime.now(UTC) + timedelta(seconds=1)
