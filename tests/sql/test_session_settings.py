"""Settings of a role that change what a connection carries: DateStyle and client_encoding."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url

from execution_core import ExecutionManager, InvalidValue, SqlExecutionStore, connect

from ..conftest import Database
from .lost_connections import open_bound_manager
from .test_lost_connections import BINDINGS

SETTINGS = {"DateStyle": "German", "client_encoding": "LATIN1"}
TEXT = "10 → 20"


@pytest.fixture(params=SETTINGS)
def setting(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(postgres_database: Database, setting: str) -> Iterator[str]:
    """The URL of a role with an unusual setting."""
    postgres_database.empty()
    role = f"unusual_{os.getpid()}"
    postgres_database.run(f"CREATE ROLE {role} LOGIN SUPERUSER")
    postgres_database.run(f"ALTER ROLE {role} SET {setting} = '{SETTINGS[setting]}'")
    own = make_url(postgres_database.url).set(username=role)
    yield own.render_as_string(hide_password=False)
    postgres_database.run(f"DROP ROLE {role}")


def refused(setting: str, binding: str) -> bool:
    """Return whether the library refuses the connections of a host's engine."""
    if binding == "own":
        return False
    return setting == "client_encoding" or binding == "listening"


@pytest.mark.parametrize("binding", BINDINGS)
def test_unusual_setting_works_or_refused_before_any_change(
    url: str,
    setting: str,
    binding: str,
    mode: str,
    runner: asyncio.Runner,
    postgres_database: Database,
) -> None:
    with open_bound_manager(url, mode, binding, runner) as manager:
        if refused(setting, binding):
            with pytest.raises(InvalidValue, match=f"has a connection with {setting}"):
                manager.create("work", TEXT)
            assert postgres_database.rows("SELECT 1 FROM executions") == []
            return
        job = manager.create("work", TEXT, max_attempts=2)
        with (
            pytest.raises(ValueError, match=TEXT),
            manager.attempt(job.id, retry_on=ValueError) as attempt,
        ):
            attempt.checkpoint("k", TEXT)
            raise ValueError(TEXT)
        (claimed,) = manager.claim()
        assert (claimed.payload, claimed.checkpoints) == (TEXT, {"k": TEXT})
        with connect(postgres_database.url) as usual:
            assert usual.get(job.id) == manager.get(job.id) == claimed


def test_unusual_setting_in_host_transaction_refused(
    url: str, setting: str, postgres_database: Database
) -> None:
    engine = create_engine(url)
    manager = ExecutionManager(SqlExecutionStore(engine))
    with engine.begin() as connection:
        with pytest.raises(InvalidValue, match=f"has a connection with {setting}"):
            manager.within(connection).create("work", TEXT)
        usual: Any = {"DateStyle": "ISO", "client_encoding": "UTF8"}[setting]
        connection.exec_driver_sql(f"SET {setting} = '{usual}'")
        manager.within(connection).create("work", TEXT)
    engine.dispose()
    (row,) = postgres_database.rows("SELECT payload FROM executions")
    assert row["payload"] == TEXT


def test_url_prepare_threshold_is_a_number_or_none(postgres_database: Database) -> None:
    own = make_url(postgres_database.url)
    for value, expected in (("none", None), ("0", 0), ("3", 3)):
        given = own.update_query_dict({"prepare_threshold": value})
        with connect(given) as manager:
            manager.create("work")
            store: Any = manager._store
            (connection,) = store._bind._idle._connections
            assert connection.driver_connection.prepare_threshold == expected
    with pytest.raises(InvalidValue, match="has prepare_threshold=soon: use a number, or none"):
        connect(own.update_query_dict({"prepare_threshold": "soon"}))
