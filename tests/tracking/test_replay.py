"""Replays: the request of a finished execution becomes a new execution."""

import threading
from datetime import timedelta

import pytest

from execution_core import (
    Execution,
    ExecutionManager,
    ExecutionNotFound,
    InvalidStateTransition,
    InvalidValue,
    connect,
)

from ..conftest import Database
from ..support.states import STATES, bring_to

FINISHED = [each for each in STATES if each.split("-")[0] in
        ("completed", "failed", "timed_out", "cancelled")]  # fmt: skip
LIVE = [each for each in STATES if each not in FINISHED]


@pytest.mark.parametrize("state", FINISHED)
def test_replay_of_finished_creates_execution(any_manager: ExecutionManager, state: str) -> None:
    finished = bring_to(any_manager, state)
    again = any_manager.replay(finished.id)
    assert again == any_manager.get(again.id)
    assert (again.status, again.attempts, again.replay_of) == ("pending", 0, finished.id)
    assert (again.type, again.payload, again.max_attempts) == ("work", {"n": 1}, 2)
    assert again.metadata == {"kept": True}  # without the cancellation reason
    assert any_manager.get(finished.id) == finished
    assert any_manager.start(again.id).attempts == 1


@pytest.mark.parametrize("state", LIVE)
def test_replay_of_live_is_refused(any_manager: ExecutionManager, state: str) -> None:
    live = bring_to(any_manager, state)
    with pytest.raises(InvalidStateTransition) as caught:
        any_manager.replay(live.id)
    assert (caught.value.verb, caught.value.to_status) == ("replay", None)
    assert caught.value.sources == ("completed", "failed", "timed_out", "cancelled")
    assert any_manager.list() == [live]


def test_replay_copies_only_the_request(any_manager: ExecutionManager) -> None:
    parent = any_manager.create("workflow")
    old = any_manager.create(
        "work",
        [1e23, None, "ü", 10**30],
        max_attempts=7,
        timeout=timedelta(seconds=9),
        idempotency_key="once",
        parent_id=parent.id,
        metadata={"tenant": 7},
        start_after=timedelta(0),
    )
    any_manager.start(old.id, worker="host")
    any_manager.advance(old.id, 1, 2, key="last", value=0)
    any_manager.log(old.id, "a line")
    any_manager.complete(old.id, "done")
    new = any_manager.replay(old.id)
    kept = {"type", "payload", "max_attempts", "timeout", "parent_id", "metadata"}
    assert new.model_dump(include=kept) == any_manager.get(old.id).model_dump(include=kept)
    fresh = any_manager.create("work")
    changed = kept | {"id", "created_at", "updated_at", "due_at", "replay_of"}
    assert new.model_dump(exclude=changed) == fresh.model_dump(exclude=changed)
    assert any_manager.logs(new.id) == []


@pytest.mark.parametrize("payload", [None, {"other": 1}, 0, [], ""])
def test_replay_with_payload_uses_it(any_manager: ExecutionManager, payload: object) -> None:
    old = bring_to(any_manager, "failed")
    assert any_manager.replay(old.id, payload=payload).payload == payload


def test_replay_invalid_payload_is_refused(any_manager: ExecutionManager) -> None:
    old = bring_to(any_manager, "failed")
    with pytest.raises(InvalidValue, match="payload"):
        any_manager.replay(old.id, payload=float("nan"))
    assert any_manager.list() == [old]


def test_replay_of_unknown_execution_raises_not_found(any_manager: ExecutionManager) -> None:
    for id in ("0198aaaa-0000-7000-8000-000000000000", "nonsense"):
        with pytest.raises(ExecutionNotFound):
            any_manager.replay(id)


def test_replay_outlives_original(any_manager: ExecutionManager) -> None:
    old = bring_to(any_manager, "completed")
    first, second = any_manager.replay(old.id), any_manager.replay(old.id)
    any_manager.delete(old.id)
    assert any_manager.get(first.id).replay_of is None
    any_manager.delete(second.id)


def test_replay_after_parent_deletion_has_no_parent(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(database.url) as manager, connect(database.url) as other:
        parent = manager.create("workflow")
        child = manager.create("work", parent_id=parent.id)
        manager.cancel(child.id)
        find = manager._store.find_by_id

        def find_then_delete_parent(id: str) -> Execution | None:
            found: Execution | None = find(id)
            if other.list(type="workflow"):
                other.delete(parent.id)
            return found

        monkeypatch.setattr(manager._store, "find_by_id", find_then_delete_parent)
        again = manager.replay(child.id)
        assert (again.parent_id, again.replay_of) == (None, child.id)


def test_replay_within_transaction_follows_it(database: Database) -> None:
    with connect(database.url) as manager:
        old = bring_to(manager, "failed")
    from execution_core import SqlExecutionStore

    manager = ExecutionManager(SqlExecutionStore(database.engine))
    with database.engine.connect() as connection:
        inside = manager.within(connection)
        again = inside.replay(old.id)
        inside.log(again.id, "in it")
        assert inside.logs(again.id)[0].message == "in it"
        connection.rollback()
    assert manager.list() == [old]
    assert database.rows("SELECT * FROM execution_logs") == []


def test_replay_by_eight_threads_creates_each(database: Database) -> None:
    with connect(database.url) as manager:
        old = bring_to(manager, "completed")
        made: list[Execution] = []
        threads = [
            threading.Thread(target=lambda: made.append(manager.replay(old.id))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({each.id for each in made}) == 8
        assert {each.replay_of for each in made} == {old.id}


def test_replay_keeps_checkpoints_if_asked(any_manager: ExecutionManager) -> None:
    job = any_manager.create("batch")
    any_manager.start(job.id)
    any_manager.advance(job.id, 4, 5, key="each", value={"done": 4, "ü": [None, 1.0]})
    any_manager.fail(job.id, "no")
    assert any_manager.replay(job.id).checkpoints == {}
    again = any_manager.replay(job.id, keep_checkpoints=True)
    assert again.checkpoints == {"each": {"done": 4, "ü": [None, 1.0]}}
    assert again.progress is None
    assert any_manager.get(again.id) == again
    with pytest.raises(InvalidValue, match=r"^keep_checkpoints "):
        any_manager.replay(job.id, keep_checkpoints=1)  # type: ignore[arg-type]


def test_replay_keeps_a_reason_that_no_cancel_wrote(any_manager: ExecutionManager) -> None:
    metadata = {"cancellation_reason": "a field of the caller's"}
    failed = any_manager.create("a", metadata=metadata)
    any_manager.start(failed.id)
    any_manager.fail(failed.id, "no")
    assert any_manager.replay(failed.id).metadata == metadata
