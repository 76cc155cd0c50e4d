"""The command line as a subprocess: `migrate`, help and exit codes."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from execution_core import migrate

from ..conftest import Database


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k != "EXECUTION_CORE_URL"}
    return subprocess.run(
        [Path(sys.executable).with_name("execution-core"), *arguments],
        cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_migrate_without_url_creates_default_database(tmp_path: Path) -> None:
    done = run("migrate", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "sqlite:///executions.db is at execution_core_0006\n"
    assert migrate.check(f"sqlite:///{tmp_path}/executions.db")


def test_migrate_url_from_environment_is_used(tmp_path: Path) -> None:
    done = run("migrate", cwd=tmp_path, EXECUTION_CORE_URL=f"sqlite:///{tmp_path}/other.db")
    assert done.returncode == 0
    assert [p.name for p in tmp_path.glob("*.db")] == ["other.db"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_migrate_sql_prints_and_creates_nothing(tmp_path: Path, kind: str) -> None:
    done = run("migrate", "--sql", "--url", f"{kind}://", cwd=tmp_path)
    assert done.returncode == 0
    assert "CREATE TABLE executions" in done.stdout
    assert "CREATE VIEW execution_attempts" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "url is not a valid database URL, such as sqlite:///executions.db"),
        ("mysql://u:secret@h/d", "url must begin with sqlite:/// or postgresql+psycopg://"),
        ("sqlite:////no/such/folder/x.db", "/no/such/folder/x.db: unable to open database file"),
        ("postgresql://u:secret@127.0.0.1:1/d", "connection"),
        ("postgresql+asyncpg://u:secret@h/d", "postgresql+psycopg://, not postgresql+asyncpg://"),
        ("sqlite://file.db", "url needs a third slash before the file: sqlite:///file.db"),
        ("sqlite://", "is an in-memory database"),
    ],
)
def test_migrate_invalid_url_exits_1_with_one_line(tmp_path: Path, url: str, message: str) -> None:
    done = run("migrate", "--url", url, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_migrate_hides_password(tmp_path: Path, postgres_database: Database) -> None:
    url = postgres_database.url.replace("postgres@", "postgres:secret@")
    done = run("migrate", "--url", url, cwd=tmp_path)
    assert done.returncode == 0
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("migrate", "--nonsense")])
def test_main_usage_error_exits_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert run(*arguments, cwd=tmp_path).returncode == 2


def test_migrate_newer_revision_refused(tmp_path: Path) -> None:
    run("migrate", cwd=tmp_path)
    with sqlite3.connect(tmp_path / "executions.db") as raw:
        raw.execute("UPDATE execution_core_version SET version_num = 'execution_core_9999'")
    raw.close()
    done = run("migrate", cwd=tmp_path)
    assert done.returncode == 1
    assert "is at revision execution_core_9999, which a newer version of" in done.stderr
    assert not migrate.check(f"sqlite:///{tmp_path}/executions.db")


def test_migrate_empty_environment_variable_is_ignored(tmp_path: Path) -> None:
    assert run("migrate", cwd=tmp_path, EXECUTION_CORE_URL="").returncode == 0
    assert (tmp_path / "executions.db").exists()


def test_migrate_async_url_accepted(tmp_path: Path) -> None:
    assert run("migrate", "--url", "sqlite+aiosqlite:///a.db", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.db").exists()


def test_run_sqlite_file_url_is_valid_in_other_directory(tmp_path: Path) -> None:
    """The command finds the same file after it changes its working directory."""
    run("migrate", cwd=tmp_path)
    url = "sqlite:///file:executions.db?mode=rw&uri=true"
    command = f"cd / && '{sys.executable}' -m execution_core log 'was here'"
    done = run("run", "--url", url, "--key", "k", "--", "sh", "-c", command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "completed" in run("list", "--url", url, cwd=tmp_path).stdout
    with sqlite3.connect(tmp_path / "executions.db") as raw:
        assert raw.execute("SELECT message FROM execution_logs").fetchall() == [("was here",)]
    raw.close()
    memory = run("list", "--url", "sqlite:///file:x?mode=memory&uri=true", cwd=tmp_path)
    assert memory.returncode == 1
    assert "is an in-memory database" in memory.stderr


def test_main_version_is_printed(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout.startswith("0.")


def test_main_help_is_printed(tmp_path: Path) -> None:
    assert "migrate" in run("--help", cwd=tmp_path).stdout
    assert "EXECUTION_CORE_URL" in run("migrate", "--help", cwd=tmp_path).stdout
