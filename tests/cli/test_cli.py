"""The command line as a subprocess: `migrate`, help and exit codes."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from execution_core import migrate
from execution_core.cli import main

from ..conftest import Database

Call = Callable[..., tuple[int, str, str]]


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k != "EXECUTION_CORE_URL"}
    return subprocess.run(
        [Path(sys.executable).with_name("execution-core"), *arguments],
        cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Return a function that runs the command line here and returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXECUTION_CORE_URL", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(exit.code or 0)
        return code, *capsys.readouterr()

    return call


def test_migrate_without_url_creates_default_database(tmp_path: Path) -> None:
    done = run("migrate", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"sqlite:///executions.db is at {migrate.revisions()[0]}\n"
    assert migrate.check(f"sqlite:///{tmp_path}/executions.db")


def test_migrate_url_from_environment_is_used(tmp_path: Path) -> None:
    done = run("migrate", cwd=tmp_path, EXECUTION_CORE_URL=f"sqlite:///{tmp_path}/other.db")
    assert done.returncode == 0
    assert [p.name for p in tmp_path.glob("*.db")] == ["other.db"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_migrate_sql_prints_and_creates_nothing(call: Call, tmp_path: Path, kind: str) -> None:
    code, out, _ = call("migrate", "--sql", "--url", f"{kind}://")
    assert code == 0
    assert "CREATE TABLE executions" in out
    assert "CREATE VIEW execution_attempts" in out
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
        ("sqlite://", "memory"),
    ],
)
def test_migrate_invalid_url_exits_1_with_one_line(call: Call, url: str, message: str) -> None:
    code, out, err = call("migrate", "--url", url)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert "secret" not in err


def test_migrate_hides_password(call: Call, postgres_database: Database) -> None:
    url = postgres_database.url.replace("postgres@", "postgres:secret@")
    code, out, err = call("migrate", "--url", url)
    assert code == 0
    assert "secret" not in out + err


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("migrate", "--nonsense")])
def test_main_usage_error_exits_2(call: Call, arguments: tuple[str, ...]) -> None:
    assert call(*arguments)[0] == 2


def test_migrate_empty_environment_variable_is_ignored(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXECUTION_CORE_URL", "")
    assert call("migrate")[0] == 0
    assert (tmp_path / "executions.db").exists()


def test_migrate_async_url_accepted(call: Call, tmp_path: Path) -> None:
    assert call("migrate", "--url", "sqlite+aiosqlite:///a.db")[0] == 0
    assert (tmp_path / "a.db").exists()


def test_run_sqlite_file_url_is_valid_in_other_directory(call: Call, tmp_path: Path) -> None:
    """The command finds the same file after it changes its working directory."""
    migrate.upgrade(f"sqlite:///{tmp_path}/executions.db")
    url = "sqlite:///file:executions.db?mode=rw&uri=true"
    command = f"cd / && '{sys.executable}' -m execution_core log 'was here'"
    done = run("run", "--url", url, "--key", "k", "--", "sh", "-c", command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "completed" in call("list", "--url", url)[1]
    with sqlite3.connect(tmp_path / "executions.db") as raw:
        assert raw.execute("SELECT message FROM execution_logs").fetchall() == [("was here",)]
    raw.close()
    code, _, err = call("list", "--url", "sqlite:///file:x?mode=memory&uri=true")
    assert (code, "is an in-memory database" in err) == (1, True)


def test_main_version_is_printed(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout.startswith("0.")


def test_main_help_is_printed(call: Call) -> None:
    assert "migrate" in call("--help")[1]
    assert "EXECUTION_CORE_URL" in call("migrate", "--help")[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_prints_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "--stalled-after" in out or shell == "tcsh"
    assert "checkpoint" in out


def test_completion_completes_in_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    asked = (
        "source ./script; COMP_WORDS=(execution-core {}); COMP_CWORD={}; _shtab_execution_core;"
        ' echo "${{COMPREPLY[@]}}"'
    )
    for words, position, expected in (("ret", 1, "retry"), ("run --ag", 2, "--again")):
        command = ["bash", "-c", asked.format(words, position)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [expected]


def test_completion_without_shtab_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'execution-core[cli]'" in capsys.readouterr().err
