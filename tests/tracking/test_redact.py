"""`redact` removes the data of a finished execution, and `annotate` changes its metadata."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from execution_core import (
    ExecutionFailure,
    ExecutionManager,
    ExecutionNotFound,
    InvalidStateTransition,
    InvalidValue,
    SqlExecutionStore,
    connect,
)
from execution_core.core.validation import new_id

from ..conftest import Database
from ..support.states import bring_to

SECRET = "0xSECRET"


def finished_with_secrets(manager: ExecutionManager) -> str:
    """Return the id of a failed execution whose every text contains a secret."""
    options: dict[str, Any] = {"idempotency_key": "k", "max_attempts": 3, "metadata": {"kept": 1}}
    id = manager.create("a", {"of": SECRET}, **options).id
    error = ExecutionFailure(message=SECRET, code="E1", stack=SECRET)
    for retryable in (True, False):
        manager.start(id, worker="host")
        manager.advance(id, 1, 2, key="k", value=SECRET, message=SECRET)
        manager.log(id, SECRET, data=SECRET)
        manager.fail(id, error, retryable=retryable)
    return id


def test_redact_removes_data_and_keeps_the_rest(any_manager: ExecutionManager) -> None:
    id = finished_with_secrets(any_manager)
    before = any_manager.get(id)
    after = any_manager.redact(id)
    assert SECRET not in after.model_dump_json()
    changed = {name for name, value in after if value != getattr(before, name)}
    assert changed == {
        *("payload", "progress", "checkpoints", "error"),
        *("redacted_at", "updated_at"),
    }
    assert after.error == ExecutionFailure(message="redacted", code="redacted")
    assert after.redacted_at == after.updated_at
    assert any_manager.logs(id) == []
    assert any_manager.get(id) == after
    # The key still stands for the work.
    again = any_manager.create("a", {"of": SECRET}, idempotency_key="k", max_attempts=3)
    assert again.id == id
    assert any_manager.redact(id).payload is None


def test_redact_of_result_and_cancellation(any_manager: ExecutionManager) -> None:
    for state in ("completed", "cancelled", "timed_out"):
        before = bring_to(any_manager, state)
        after = any_manager.redact(before.id)
        assert (after.status, after.result) == (before.status, None)
        assert (after.error is None) == (before.error is None)


@pytest.mark.parametrize("state", ["pending", "running", "retrying"])
def test_redact_of_live_execution_refused(any_manager: ExecutionManager, state: str) -> None:
    before = bring_to(any_manager, state)
    any_manager.log(before.id, "kept")
    with pytest.raises(InvalidStateTransition, match="Cannot redact execution"):
        any_manager.redact(before.id)
    assert any_manager.get(before.id) == before
    assert len(any_manager.logs(before.id)) == 1


def test_redact_leaves_no_secret_in_the_database(
    database: Database, manager: ExecutionManager
) -> None:
    id = finished_with_secrets(manager)
    kept = bring_to(manager, "failed").id
    history = len(database.history(id))
    manager.redact(id)
    for table in ("executions", "execution_history", "execution_logs"):
        assert SECRET not in json.dumps(database.rows(f"SELECT * FROM {table}"), default=str)
    assert len(database.history(id)) == history
    rows = database.rows("SELECT error_code, error_message FROM execution_attempts"
                         " WHERE execution_id = :id ORDER BY attempt", id=id)  # fmt: skip
    assert [tuple(row.values()) for row in rows] == [("E1", "redacted")] * 2
    assert manager.get(kept).error is not None


def test_redact_by_manual_update_removes_the_log(
    database: Database, manager: ExecutionManager
) -> None:
    id = finished_with_secrets(manager)
    database.run(f"UPDATE executions SET redacted_at = updated_at WHERE id = '{id}'")
    assert manager.logs(id) == []


def test_redact_joins_the_callers_transaction(
    database: Database, manager: ExecutionManager
) -> None:
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    id = finished_with_secrets(manager)
    with database.engine.connect() as connection:
        manager.within(connection).redact(id)
        connection.rollback()
    assert manager.get(id).payload == {"of": SECRET}
    assert len(manager.logs(id)) == 2


def test_annotate_merges_keys_in_any_status(any_manager: ExecutionManager) -> None:
    for state in ("pending", "running", "completed", "failed", "cancelled"):
        before = bring_to(any_manager, state)
        any_manager.annotate(before.id, {"ticket": 17, 'a"b': {"deep": [1, None]}})
        after = any_manager.annotate(before.id, {"ticket": None, "ü": "x"})
        expected = before.metadata | {"ticket": None, 'a"b': {"deep": [1, None]}, "ü": "x"}
        assert after.metadata == expected
        unchanged = before.model_copy(update={"metadata": expected, "updated_at": after.updated_at})
        assert after == unchanged


@pytest.mark.parametrize("metadata", [{}, None, [], "{}", {1: 2}, {"a": float("nan")}])
def test_annotate_invalid_metadata_refused(any_manager: ExecutionManager, metadata: object) -> None:
    before = bring_to(any_manager, "running")
    with pytest.raises(InvalidValue, match=r"^metadata "):
        any_manager.annotate(before.id, metadata)  # type: ignore[arg-type]
    assert any_manager.get(before.id) == before


def test_annotate_unknown_execution_is_not_found(any_manager: ExecutionManager) -> None:
    with pytest.raises(ExecutionNotFound):
        any_manager.annotate(new_id(), {"a": 1})


def test_annotate_concurrent_keys_are_all_kept(database: Database) -> None:
    with connect(database.url) as manager, ThreadPoolExecutor() as pool:
        id = manager.create("a").id
        list(pool.map(lambda n: manager.annotate(id, {str(n): n}), range(12)))
        assert manager.get(id).metadata == {str(n): n for n in range(12)}
