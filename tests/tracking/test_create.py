"""Idempotency keys: one key, one execution."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from execution_core import ExecutionManager, ExecutionNotFound, IdempotencyConflict

from ..conftest import Database
from ..support.states import STATES


def test_create_repeated_returns_same_execution(any_manager: ExecutionManager) -> None:
    payload = {"b": [1, 2.5, None, True], "a": {"y": 1, "x": "ü"}}
    first = any_manager.create("pay", payload, idempotency_key="k")
    assert any_manager.create("pay", payload, idempotency_key="k") == first
    other_order = {"a": {"x": "ü", "y": 1}, "b": [1, 2.5, None, True]}
    assert any_manager.create("pay", other_order, idempotency_key="k") == first
    assert any_manager.find_by_idempotency_key("k") == first
    assert any_manager.find_by_idempotency_key("K") is None
    assert len(any_manager.list()) == 1


@pytest.mark.parametrize("state", STATES)
def test_create_repeated_in_any_state_returns_execution(
    any_manager: ExecutionManager, state: str
) -> None:
    execution = any_manager.create("work", 1, max_attempts=2, idempotency_key="k")
    for step in STATES[state]:
        execution = step(any_manager, execution.id)
    assert any_manager.create("work", 1, idempotency_key="k") == execution


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("pay", 1), ("refund", 1)),
        (("pay", 1), ("pay", 2)),
        (("pay", 1), ("pay", True)),
        (("pay", 1), ("pay", 1.0)),
        (("pay", 0), ("pay", None)),
        (("pay", {}), ("pay", [])),
        (("pay", [1, 2]), ("pay", [2, 1])),
        (("pay", 1e23), ("pay", 10**23)),
        (("pay", "1"), ("pay", 1)),
        (("pay", {"a": None}), ("pay", {})),
    ],
)
def test_create_other_work_with_same_key_conflicts(
    any_manager: ExecutionManager, one: tuple[str, Any], other: tuple[str, Any]
) -> None:
    for first, second in ((one, other), (other, one)):
        held = any_manager.create(*first, idempotency_key="k")
        assert any_manager.create(*first, idempotency_key="k") == held
        with pytest.raises(IdempotencyConflict) as caught:
            any_manager.create(*second, idempotency_key="k")
        assert (caught.value.idempotency_key, caught.value.execution_id) == ("k", held.id)
        any_manager.delete(held.id)


@pytest.mark.parametrize(
    "payload", [1e23, 5e-324, 1.7976931348623157e308, -0.0, 10**400, Decimal("1.10")], ids=str
)
def test_create_repeated_with_exact_numbers_returns_same_execution(
    manager: ExecutionManager, payload: Any
) -> None:
    first = manager.create("pay", payload, idempotency_key="k")
    assert manager.create("pay", payload, idempotency_key="k").id == first.id
    with pytest.raises(IdempotencyConflict) as caught:
        manager.create("other", payload, idempotency_key="k")
    assert caught.value.differs == "type"


def test_create_with_missing_parent_is_refused(any_manager: ExecutionManager) -> None:
    gone = any_manager.create("a")
    any_manager.delete(gone.id)
    for key in (None, "k"):
        with pytest.raises(ExecutionNotFound) as caught:
            any_manager.create("b", parent_id=gone.id, idempotency_key=key)
        assert caught.value.execution_id == gone.id
    assert any_manager.list() == []


def test_create_repeated_after_parent_deletion_returns_execution(
    any_manager: ExecutionManager,
) -> None:
    parent = any_manager.create("a")
    child = any_manager.create("b", parent_id=parent.id, idempotency_key="k")
    any_manager.delete(parent.id)
    assert any_manager.create("b", parent_id=parent.id, idempotency_key="k").id == child.id


def test_create_after_manual_insert_compares_payload(
    database: Database, manager: ExecutionManager
) -> None:
    database.run(
        "INSERT INTO executions (id, type, payload, idempotency_key)"
        " VALUES ('0198a000-0000-7000-8000-000000000001', 'pay', '{\"b\": 1, \"a\": [2]}', 'k')"
    )
    held = manager.create("pay", {"a": [2], "b": 1}, idempotency_key="k")
    assert held.id == "0198a000-0000-7000-8000-000000000001"
    with pytest.raises(IdempotencyConflict):
        manager.create("pay", {"a": [2], "b": 2}, idempotency_key="k")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"max_attempts": 3}, "keeps max_attempts=2: 3 is ignored"),
        ({"max_attempts": 1}, None),  # `retry` may have added some
        ({"timeout": timedelta(hours=1)}, "keeps timeout=None: 1:00:00 is ignored"),
        ({"metadata": {"request": 2}}, None),
    ],
    ids=str,
)
def test_create_with_known_key_and_other_options_warns(
    any_manager: ExecutionManager,
    caplog: pytest.LogCaptureFixture,
    option: dict[str, Any],
    said: str | None,
) -> None:
    given: dict[str, Any] = {"max_attempts": 2, "idempotency_key": "k"}
    first = any_manager.create("a", **given)
    assert any_manager.create("a", **given) == first
    assert caplog.messages == []
    assert any_manager.create("a", **given | option) == first
    assert [said in message for message in caplog.messages] == [True] * bool(said)  # type: ignore[operator]


def test_executions_and_log_entries_can_be_in_a_set(any_manager: ExecutionManager) -> None:
    first, second = any_manager.create("a", {"n": [1]}), any_manager.create("a")
    found = any_manager.list()
    assert {first, second, *found} == {*found}
    any_manager.log(first.id, "said", data=[1])
    (entry,) = any_manager.logs(first.id)
    assert entry in {entry}
