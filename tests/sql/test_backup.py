"""Backup, restore, and from SQLite to PostgreSQL, as docs/migrations.md describes them."""

import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from execution_core import connect, doctor, migrate

from ..conftest import SERVER, Database
from ..docs.test_docs import blocks
from ..support.postgres import dsn
from ..support.states import STATES, bring_to


def fill(url: str) -> None:
    with connect(url) as manager:
        parent = manager.create("parent")
        for state in STATES:
            bring_to(manager, state)
        child = manager.create("child", {"n": 1.5, "text": "→"}, parent_id=parent.id)
        manager.start(child.id)
        manager.log(child.id, "half way")
        manager.checkpoint(child.id, "k", [1, None])
        manager.fail(child.id, ValueError("no"), attempt=1)
        manager.replay(child.id)


def content(database: Database | str) -> dict[str, Any]:
    """Return everything that a manager reads, and the history."""
    url = database if isinstance(database, str) else database.url
    with connect(url) as manager:
        found = {each.id: each.model_dump() for each in manager.list(limit=1000)}
        logs = {id: [each.model_dump() for each in manager.logs(id)] for id in found}
    engine = create_engine(url)
    history = Database(engine.dialect.name, url, engine)
    histories = {id: history.history(id) for id in found}
    engine.dispose()
    return {"executions": found, "logs": logs, "histories": histories}


def levels(url: str) -> dict[str, str]:
    checked = ("history", "history_start", "migrated")
    findings = doctor.examine(url, whole=True)
    return {each.check: each.level for each in findings if each.check in checked}


SOUND = dict.fromkeys(("migrated", "history", "history_start"), "ok")


@pytest.fixture
def run_block(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str, str], None]:
    """A function that runs the shell commands of the page that contain a text."""
    installation = request.config.stash[SERVER].installation
    folder = installation.binaries if installation else Path("/usr/bin")

    def run(part: str, old: str, new: str) -> None:
        if not (folder / "pg_dump").exists():
            pytest.skip(f"NOT TESTED: {folder} has no pg_dump")
        (block,) = (each for each in blocks("migrations.md", "sh") if part in each)
        urls = {"OLD": dsn(old), "NEW": dsn(new)}
        done = subprocess.run(
            ["sh", "-ec", block],
            cwd=tmp_path, env=os.environ | urls | {"PATH": f"{folder}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    return run


@pytest.fixture(scope="module")
def source(empty_postgres: Callable[[str], str]) -> str:
    """The URL of a filled database, which the tests only read."""
    url = empty_postgres("source")
    migrate.upgrade(url)
    fill(url)
    return url


@pytest.fixture
def target(empty_postgres: Callable[[str], str]) -> str:
    """The URL of an empty database."""
    return empty_postgres("target")


@pytest.fixture(scope="module")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled database, which the tests only read."""
    path = tmp_path_factory.mktemp("backup") / "jobs.db"
    migrate.upgrade(f"sqlite:///{path}")
    fill(f"sqlite:///{path}")
    return path


def test_backup_full_restore_is_complete(
    source: str, target: str, run_block: Callable[[str, str, str], None]
) -> None:
    run_block("pg_restore -d", source, target)
    assert content(target) == content(source)
    assert levels(target) == SOUND


def test_backup_data_only_restore_is_complete(
    source: str, target: str, run_block: Callable[[str, str, str], None]
) -> None:
    migrate.upgrade(target)
    run_block("--disable-triggers", source, target)
    assert content(target) == content(source)
    assert levels(target) == SOUND


@pytest.mark.parametrize("way", [".backup", "VACUUM INTO"])
def test_backup_of_sqlite_is_complete(sqlite_file: Path, tmp_path: Path, way: str) -> None:
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(sqlite_file)) as old, closing(sqlite3.connect(copy)) as new:
        if way == ".backup":  # the shell of SQLite calls the same function
            old.backup(new)
        else:
            old.execute("VACUUM INTO ?", [str(copy)])
    assert content(f"sqlite:///{copy}") == content(f"sqlite:///{sqlite_file}")
    assert levels(f"sqlite:///{copy}") == SOUND


def test_backup_copy_that_fires_the_trigger_is_seen_by_doctor(source: str, target: str) -> None:
    migrate.upgrade(target)
    engines = create_engine(source), create_engine(target)
    with engines[0].connect() as old, engines[1].begin() as new:
        for row in old.exec_driver_sql("SELECT id, type, result FROM executions"
                                       " WHERE status = 'completed'"):  # fmt: skip
            new.exec_driver_sql(
                "INSERT INTO executions (id, type, status, attempts, started_at, completed_at)"
                f" VALUES ('{row.id}', '{row.type}', 'completed', 1, now(), now())"
            )
    for engine in engines:
        engine.dispose()
    assert levels(target) == SOUND | {"history_start": "warning"}


def test_backup_move_from_sqlite_is_complete(sqlite_file: Path, target: str) -> None:
    source = f"sqlite:///{sqlite_file}"
    migrate.upgrade(target)
    (code,) = (each for each in blocks("migrations.md") if "def move" in each)
    names: dict[str, Any] = {}
    exec(code, names)
    engines = create_engine(source), create_engine(target)
    names["move"](*engines)
    for engine in engines:
        engine.dispose()
    assert content(target) == content(source)
    assert levels(target) == SOUND
    with connect(target) as manager:  # the triggers are on again
        assert manager.start(manager.create("later").id).attempts == 1
    assert levels(target) == SOUND
