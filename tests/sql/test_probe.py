"""`doctor --probe` says how a server, a pooler, a standby or a file behaves."""

import json
import os
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, make_url

from execution_core import InvalidValue, cli, connect, doctor, migrate
from execution_core.sql.driver.engine import WAL_SIZE_LIMIT

from ..conftest import Database
from ..support import postgres
from ..support.pgbouncer import BINARY, MISSING, pgbouncer
from ..support.standby import set_standby_names, synchronous_standby
from .lost_connections import wait_for


def messages(target: Any) -> dict[str, str]:
    """Return level and message of each finding."""
    return {found.check: f"{found.level}: {found.message}" for found in doctor.probe(target)}


def test_probe_direct_server_without_schema_is_described(empty_postgres: Any) -> None:
    found = messages(empty_postgres(f"probe_{os.urandom(4).hex()}"))
    assert found.pop("server").startswith("ok: PostgreSQL ")
    assert found["pooler"].startswith("ok: none is visible.")
    assert found["node"] == "ok: a primary that accepts writes"
    assert found["server_encoding"] == found["client_encoding"] == "ok: UTF8"
    assert found["date_style"].startswith("ok: ISO")
    assert found["standby"] == "ok: no standby is connected"
    assert "after 5 executions" in found["prepared_statements"]
    assert found["timeouts"].count("managers from connect() set their own") == 2


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_probe_pooler_is_recognised(postgres_database: Database) -> None:
    with pgbouncer(postgres_database.url, "transaction") as url:
        found = messages(url)
    assert "another process answers than at the login" in found["pooler"]
    assert found["prepared_statements"].startswith("ok: none: a pooler")
    assert "lock_timeout: none through a pooler" in found["timeouts"]


def test_probe_pooler_of_url_and_settings_of_role_are_named(postgres_database: Database) -> None:
    url = make_url(postgres_database.url).update_query_dict(
        {
            "behind_pooler": "true",
            "options": "-clock_timeout=7s -cdefault_transaction_read_only=on",
        }
    )
    found = messages(url)
    assert "the URL or the engine says so" in found["pooler"]
    assert found["timeouts"] == "ok: lock_timeout: 7s; statement_timeout: none through a pooler"
    assert found["node"].startswith("problem: a primary whose default_transaction_read_only is on")


def test_probe_engine_with_unusual_session_is_problem(postgres_database: Database) -> None:
    options = "-cDateStyle=German -cclient_encoding=LATIN1"
    engine = create_engine(postgres_database.url, connect_args={"options": options})
    found = messages(engine)
    engine.dispose()
    assert found["client_encoding"] == "problem: LATIN1"
    assert found["date_style"] == "problem: German, DMY"


def test_probe_database_of_other_encoding_is_problem(postgres_database: Database) -> None:
    name = f"latin1_{os.getpid()}"
    create = f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    admin = postgres_database.engine.execution_options(isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(create)
        latin1 = make_url(postgres_database.url).set(database=name)
        found = messages(latin1)
        with pytest.raises(InvalidValue, match="ENCODING LATIN1, which cannot store every text"):
            migrate.upgrade(latin1)
        settings = {each.check: each.level for each in doctor.examine(latin1)}
        connection.exec_driver_sql(f"DROP DATABASE {name}")
    assert found["server_encoding"] == "problem: LATIN1"
    assert settings["server_encoding"] == "problem"


@pytest.mark.exhaustive
def test_probe_standby_and_its_primary_are_described() -> None:
    with postgres.server(own=True) as primary:
        with synchronous_standby(primary) as standby:
            wait_for(lambda: "waits for a synchronous" in messages(primary.url)["standby"])
            assert messages(standby.url)["node"] == ("problem: a standby, which refuses all writes")
            local = make_url(primary.url).update_query_dict(
                {"options": "-csynchronous_commit=local"}
            )
            assert messages(local)["standby"].startswith("warning: synchronous_commit is local")
            with psycopg.connect(postgres.dsn(primary.url), autocommit=True) as connection:
                set_standby_names(connection, "nobody")
                wait_for(lambda: "none is connected" in messages(primary.url)["standby"])
                set_standby_names(connection, "*")
        wait_for(lambda: "none is connected" in messages(primary.url)["standby"])
        assert messages(primary.url)["standby"].startswith("warning: none is connected")


def test_probe_sqlite_file_is_described(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    migrate.upgrade(f"sqlite:///{file}")
    file.chmod(0o644)
    with connect(f"sqlite:///{file}") as manager:
        manager.create("work")
        found = messages(f"sqlite:///{file}")
        assert found["wal_size"].startswith("ok: 0.")
        assert found["file_mode"] == "warning: 0644: other users can read payloads"
        file.chmod(0o600)
        with Path(f"{file}-wal").open("r+b") as wal:
            size = wal.seek(0, os.SEEK_END)
            wal.truncate(3 * WAL_SIZE_LIMIT)
            found = messages(f"sqlite:///{file}")
            wal.truncate(size)
        assert found["wal_size"] == "warning: 192.0 MB"
        assert found["file_mode"] == "ok: 0600"


def test_probe_command_prints_findings(
    postgres_database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--probe", "--url", postgres_database.url]) == 0
    assert "ok       node: a primary that accepts writes" in capsys.readouterr().out
    assert cli.main(["doctor", "--probe", "--json", "--url", postgres_database.url]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"pooler", "standby"} < {each["check"] for each in printed["findings"]}
