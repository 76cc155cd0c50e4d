"""Backup, restore, and from SQLite to PostgreSQL, as docs/migrations.md describes them."""

import subprocess
from collections.abc import Callable
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
def program(request: pytest.FixtureRequest) -> Callable[..., bytes]:
    """A function that runs a program of the server's installation."""
    installation = request.config.stash[SERVER].installation
    folder = installation.binaries if installation else Path("/usr/bin")

    def run(name: str, *arguments: str, stdin: bytes = b"") -> bytes:
        if not (folder / name).exists():
            pytest.skip(f"NOT TESTED: {folder} has no {name}")
        done = subprocess.run(
            [folder / name, *arguments], input=stdin, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def urls(empty_postgres: Callable[[str], str], request: pytest.FixtureRequest) -> tuple[str, str]:
    """The URLs of a filled and of an empty database."""
    name = request.node.originalname.replace("test_backup_", "")[:20]
    source, target = empty_postgres(f"{name}_a"), empty_postgres(f"{name}_b")
    migrate.upgrade(source)
    fill(source)
    return source, target


def test_backup_full_restore_is_complete(
    urls: tuple[str, str], program: Callable[..., bytes]
) -> None:
    source, target = urls
    dump = program("pg_dump", dsn(source))
    program("psql", "-v", "ON_ERROR_STOP=1", "-q", dsn(target), stdin=dump)
    assert content(target) == content(source)
    assert levels(target) == SOUND


def test_backup_data_only_restore_is_complete(
    urls: tuple[str, str], program: Callable[..., bytes]
) -> None:
    source, target = urls
    migrate.upgrade(target)
    tables = [f"--table=execution{name}" for name in ("s", "_history", "_logs")]
    dump = program("pg_dump", "--data-only", "--disable-triggers", *tables, dsn(source))
    program("psql", "-v", "ON_ERROR_STOP=1", "-q", dsn(target), stdin=dump)
    assert content(target) == content(source)
    assert levels(target) == SOUND


def test_backup_copy_that_fires_the_trigger_is_seen_by_doctor(urls: tuple[str, str]) -> None:
    source, target = urls
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


def test_backup_move_from_sqlite_is_complete(
    empty_postgres: Callable[[str], str], tmp_path: Path
) -> None:
    source, target = f"sqlite:///{tmp_path}/jobs.db", empty_postgres("moved")
    migrate.upgrade(source)
    migrate.upgrade(target)
    fill(source)
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
