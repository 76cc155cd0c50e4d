"""The history names who made each transition."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from execution_core import ExecutionManager, InvalidValue, SqlExecutionStore

from ..conftest import Database
from ..support.states import bring_to

CALLS: dict[str, tuple[str, Callable[[ExecutionManager, str, Any], Any]]] = {
    "complete": ("running", lambda m, id, by: m.complete(id, by=by)),
    "fail": ("running", lambda m, id, by: m.fail(id, "no", by=by)),
    "timeout": ("running", lambda m, id, by: m.timeout(id, by=by)),
    "cancel": ("retrying", lambda m, id, by: m.cancel(id, "why", by=by)),
    "retry": ("failed", lambda m, id, by: m.retry(id, by=by)),
    "retry-extended": ("failed-last", lambda m, id, by: m.retry(id, extra_attempts=1, by=by)),
    "release": ("running", lambda m, id, by: m.release(id, by=by)),
    "replay": ("completed", lambda m, id, by: m.replay(id, by=by)),
}


def actors(database: Database, id: str) -> list[str | None]:
    query = "SELECT actor FROM execution_history WHERE execution_id = :id ORDER BY seq"
    return [row["actor"] for row in database.rows(query, id=id)]


@pytest.fixture
def unnamed(database: Database) -> str | None:
    """The actor of a caller who gives no name."""
    if database.name == "sqlite":
        return None
    (row,) = database.rows("SELECT CAST(session_user AS text) AS name")
    return str(row["name"])


@pytest.mark.parametrize("verb", CALLS)
def test_verb_by_somebody_is_in_the_history(
    database: Database, manager: ExecutionManager, unnamed: str | None, verb: str
) -> None:
    state, call = CALLS[verb]
    before = bring_to(manager, state)
    changed = call(manager, before.id, "ada ü")
    assert actors(database, changed.id)[-1] == "ada ü"
    assert {*actors(database, before.id)[:-1]} <= {unnamed}
    if changed.status == "retrying":
        manager.start(changed.id)  # the next caller gives no name
        assert actors(database, changed.id)[-2:] == ["ada ü", unnamed]


@pytest.mark.parametrize("by", ["", "x" * 256, "a\0b", 5])
@pytest.mark.parametrize("verb", CALLS)
def test_verb_by_invalid_name_is_refused(
    any_manager: ExecutionManager, verb: str, by: object
) -> None:
    state, call = CALLS[verb]
    before = bring_to(any_manager, state)
    with pytest.raises(InvalidValue, match=r"^by "):
        call(any_manager, before.id, by)
    assert any_manager.get(before.id) == before


def test_manual_update_does_not_repeat_the_last_name(
    database: Database, manager: ExecutionManager, unnamed: str | None
) -> None:
    job = manager.retry(bring_to(manager, "failed").id, by="ada")
    database.run(
        "UPDATE executions SET status = 'cancelled', due_at = NULL, completed_at = updated_at"
        f" WHERE id = '{job.id}'"
    )
    assert actors(database, job.id)[-2:] == ["ada", unnamed]


def test_setting_of_the_transaction_names_the_actor(postgres_database: Database) -> None:
    """Of manual SQL and of verbs; a name that a verb gives comes first."""
    manager = ExecutionManager(SqlExecutionStore(postgres_database.engine))
    ids = [bring_to(manager, "running").id for _ in range(3)]
    with postgres_database.engine.begin() as connection:
        connection.execute(text("SET LOCAL execution_core.actor = 'migration'"))
        inside = manager.within(connection)
        inside.timeout(ids[0])
        inside.timeout(ids[1], by="ada")
        connection.execute(
            text(
                "UPDATE executions SET status = 'cancelled', completed_at = updated_at"
                " WHERE id = :id"
            ),
            {"id": ids[2]},
        )
    named = [actors(postgres_database, id)[-1] for id in ids]
    assert named == ["migration", "ada", "migration"]
    with postgres_database.engine.begin() as connection:
        manager.within(connection).retry(ids[1], extra_attempts=1)
    assert actors(postgres_database, ids[1])[-1] not in ("migration", "ada", None)
