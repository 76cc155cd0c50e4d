"""The command line under bad conditions: closed streams, small terminals, invalid values."""

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, make_url
from sqlalchemy.exc import OperationalError

from execution_core import ExecutionManager, SqlExecutionStore
from execution_core.cli import main
from execution_core.cli.database import explain

from ..conftest import Database, open_database
from .terminal import PROGRAM, remove_control_sequences, run_in_terminal

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plain(database: Database) -> ExecutionManager:
    return ExecutionManager(SqlExecutionStore(database.engine))


@pytest.fixture
def embedded(request: pytest.FixtureRequest) -> Iterator[Database]:
    """SQLite only, for behaviour that does not depend on the database."""
    with open_database("sqlite", request) as database:
        yield database


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the command line and returns exit code, stdout and stderr."""

    def call(url: str, command: str, *rest: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([command, "--url", url, *rest])
        except SystemExit as exit:
            code = int(exit.code or 0)
        return code, *capsys.readouterr()

    return call


def in_shell(command: str, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command.replace("PROGRAM", f"'{PROGRAM}'")],
        env=os.environ | {"EXECUTION_CORE_URL": url} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


# --- standard streams ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("PROGRAM list --type none --json 2>&-", 0),
        ("PROGRAM show zz --json 2>&-", 3),
        ("PROGRAM run --type '' -- echo hi 2>&-", 1),
        ("PROGRAM list >&-", 0),
        ("PROGRAM migrate --sql >&-", 0),
        ("PROGRAM list <&- >&- 2>&-", 0),
        ("PROGRAM list --with payload >/dev/full", 1),
    ],
)
def test_main_closed_or_full_stream_exits_cleanly(
    embedded: Database, command: str, code: int
) -> None:
    ExecutionManager(SqlExecutionStore(embedded.engine)).create("a")
    done = in_shell(command, embedded.url)
    assert done.returncode == code
    # Text for a closed stream is never written to the other one.
    assert done.stdout == "" or json.loads(done.stdout) == {"executions": [], "next_before": None}
    assert done.stderr in ("", "execution-core: [Errno 28] No space left on device\n")


def test_show_ascii_stdout_prints_escapes(embedded: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(embedded.engine))
    job = manager.create("ünï", {"text": "漢字"})
    done = in_shell(f"PROGRAM show {job.id}", embedded.url, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\xfcn\xef" in done.stdout
    assert r"\u6f22" in done.stdout


@pytest.mark.slow
def test_sweep_broken_pipe_still_sweeps_all(database: Database, plain: ExecutionManager) -> None:
    # The output exceeds the pipe's buffer, so the pipe breaks during the sweep.
    for _ in range(250):
        plain.start(plain.create("a").id)
    database.run("UPDATE executions SET timeout_ms = 1000, deadline_at = started_at")
    in_shell("PROGRAM sweep | true", database.url)
    assert database.rows("SELECT DISTINCT status FROM executions") == [{"status": "timed_out"}]


# --- terminals ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80])
def test_list_narrow_terminal_prints_all_columns(embedded: Database, columns: int) -> None:
    manager = ExecutionManager(SqlExecutionStore(embedded.engine))
    job = manager.create("send-newsletter-to-all-customers")
    manager.start(job.id, worker="worker-host-1:12345")
    manager.fail(job.id, "Exited with status 1: cannot stat '/mnt/backup'", retryable=False)
    done = manager.create("a")
    manager.start(done.id)
    manager.complete(done.id)
    code, shown = run_in_terminal("list", "--url", embedded.url, columns=columns)
    seen = remove_control_sequences(shown)
    assert code == 0
    words = seen.split()
    assert {job.id[:13], "ATTEMPT", "failed", "completed", "1/1", "Exited"} <= set(words)
    letters = "".join(words)
    assert all(letter in letters for letter in "send-newsletter")
    if columns < 80:
        assert "worker-host-1:12345" in letters


def test_watch_narrow_terminal_prints_id(embedded: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(embedded.engine))
    job = manager.create("漢" * 30)
    manager.start(job.id)
    manager.update_progress(job.id, 1, 2)
    manager.complete(job.id)
    code, shown = run_in_terminal("watch", job.id, "--url", embedded.url, columns=30)
    seen = remove_control_sequences(shown)
    assert code == 0, seen
    assert job.id[:5] in seen


def test_watch_wide_characters_keep_id_uncut(embedded: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(embedded.engine))
    job = manager.create("漢" * 24)
    manager.start(job.id)
    manager.complete(job.id)
    _, shown = run_in_terminal("watch", job.id, "--url", embedded.url, columns=80)
    assert job.id[:13] in remove_control_sequences(
        shown
    )  # less important columns are omitted first


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("list", "--newer-than", "999999999d"), 1, "INVALID_VALUE: age must be at least 0 and at"),
        (("list", "--older-than", "900000d"), 1, "INVALID_VALUE: age must be at least 0 and at"),
        (("list", "--finished-within", "900000d"), 1, "INVALID_VALUE: age must be at least 0"),
        (("list", "--type", "\udcff"), 1, "INVALID_VALUE: type must not contain a lone surrogate"),
        (("list", "--type", ""), 1, "INVALID_VALUE: type must not be empty"),
        (("list", "--limit", "0000100001"), 2, "use a whole number from 1 to 10000"),
        (
            ("watch", "--json", "--every", "999999999d"),
            1,
            "INVALID_VALUE: every must be more than 0",
        ),
        (("watch", "--json", "--every", "0s"), 1, "INVALID_VALUE: every must be more than 0"),
    ],
)
def test_main_invalid_value_refused(
    embedded: Database, call: Call, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ended, out, err = call(embedded.url, *arguments)
    assert (ended, out) == (code, "")
    assert message in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--backoff 99999999d -- true", 1, "INVALID_VALUE: backoff must be more than 0"),
        ("-- ''", 2, "no COMMAND given"),
        ("-- /", 126, "'/' cannot be run: Permission denied"),
        (f"-- {'x' * 300}", 126, "cannot be run: File name too long"),
    ],
)
def test_run_invalid_command_refused(
    embedded: Database, arguments: str, code: int, message: str
) -> None:
    done = in_shell(f"PROGRAM run {arguments}", embedded.url)
    assert done.returncode == code
    assert message in done.stderr


def test_list_invalid_status_prints_choices(embedded: Database, call: Call) -> None:
    code, _, err = call(embedded.url, "list", "--status", "FAILED")
    assert (code, "ExecutionStatus" in err) == (2, False)
    assert re.search(r"choose from '?pending'?, '?running'?, ", err)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("30", "invalid duration '30': add a unit, e.g. 30s"),
        ("soon", "invalid duration 'soon': use numbers with the units ms, s, m, h, d or w"),
        ("9" * 400 + "d", "it is too long"),
    ],
)
def test_sweep_invalid_duration_says_how_to_write_it(
    embedded: Database, call: Call, typed: str, message: str
) -> None:
    code, _, err = call(embedded.url, "sweep", "--stalled-after", typed)
    assert (code, message in err) == (2, True)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("database is locked", "Another process holds the write lock"),
        ("attempt to write a readonly database", "check the permissions of the file"),
        ("cannot execute UPDATE in a read-only transaction", "connect to the primary server"),
        ("QueuePool limit of size 5 overflow 10 reached", "increase pool_size"),
    ],
)
def test_database_error_names_likely_cause(reason: str, advice: str) -> None:
    error = OperationalError("UPDATE executions", {}, sqlite3.OperationalError(reason))
    message = explain(error, "sqlite:///executions.db")
    assert message.startswith(f"sqlite:///executions.db: {reason}. ")
    assert advice in message


@pytest.mark.parametrize("width", ["36500d", "36499d"])
@pytest.mark.parametrize("option", ["--newer-than", "--older-than", "--finished-within"])
def test_list_longest_ages_accepted(
    database: Database, call: Call, option: str, width: str
) -> None:
    assert call(database.url, "list", option, width, "--json")[0] == 0


# --- URLs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "postgresql://u:s3cret@h/d", "list"],
        ["list", "postgresql://u:s3cret@h/d"],
        ["list", "postgresql:///d?user=u&password=s3cret"],
        ["show", "postgresql://u:s3cr@s3cret@h/d", "--url", "postgresql://127.0.0.1:1/d"],
        ["migrate", "--url", "postgresql://u:pass@s3cret@127.0.0.1:1/d"],
        ["list", "--url", "postgresql://u:pass@s3cret@127.0.0.1:1/d"],
        ["list", "--status", "postgresql://u:s3cret@h/d"],
        ["show", "postgresql://u:s3cret@h/d"],
    ],
)
def test_main_misplaced_password_is_masked(
    embedded: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.setenv("EXECUTION_CORE_URL", embedded.url)
    try:
        code: object = main(arguments)
    except SystemExit as exit:
        code = exit.code
    assert code in (1, 2, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert "s3cret" not in err
    assert "Traceback" not in err


def test_main_port_is_not_masked(call: Call) -> None:
    assert (
        "postgresql://127.0.0.1:1/d: connection failed"
        in call("postgresql://127.0.0.1:1/d", "list")[2]
    )


def test_main_server_message_is_escaped(postgres_database: Database, call: Call) -> None:
    url = make_url(postgres_database.url).set(database="no\x1b[2Jne")
    code, _, err = call(url.render_as_string(hide_password=False), "list")
    assert code == 1
    assert r'database "no\x1b[2Jne" does not exist' in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "INVALID_VALUE: url is an in-memory database"),
        ("sqlite:///:memory:", "INVALID_VALUE: url is an in-memory database"),
        ("sqlite:///\udcff.db", "INVALID_VALUE: url must not contain a lone surrogate"),
        ("sqlite:///.", "unable to open database file"),
    ],
)
def test_list_url_without_file_refused(call: Call, url: str, message: str) -> None:
    code, out, err = call(url, "list")
    assert (code, out) == (1, "")
    assert message in err


def test_list_long_file_name_refused() -> None:
    done = in_shell("PROGRAM list", f"sqlite:///{'x' * 300}.db")
    assert done.returncode == 1
    assert "File name too long" in done.stderr
    assert "Traceback" not in done.stderr


# --- concurrent writers -------------------------------------------------------------------------


def test_reading_commands_do_not_wait_for_writer(embedded: Database, call: Call) -> None:
    manager = ExecutionManager(SqlExecutionStore(embedded.engine))
    id = manager.create("a").id
    reading = (["list"], ["stats"], ["show", id], ["watch", "--json"])
    with embedded.engine.connect() as writer:
        writer.exec_driver_sql("UPDATE executions SET type = 'b'")
        for command in reading:
            assert call(embedded.url, *command)[0] == 0
        writer.rollback()


@pytest.mark.parametrize(
    "command", [["list"], ["list", "--with", "payload", "--json"], ["watch", "--json"]]
)
def test_list_rows_deleted_meanwhile_are_printed(
    database: Database, plain: ExecutionManager, call: Call, command: list[str]
) -> None:
    plain.start(plain.create("a").id)
    deleted: list[bool] = []

    def delete(*arguments: Any) -> None:
        if "execution_overview" in arguments[2] and not deleted:
            deleted.append(True)
            database.run("DELETE FROM executions")

    event.listen(Engine, "after_cursor_execute", delete)
    try:
        code, out, _ = call(database.url, *command)
    finally:
        event.remove(Engine, "after_cursor_execute", delete)
    assert (code, deleted) == (0, [True])
    assert "running" in out


# --- invalid rows from manual SQL ---------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "payload = '1e400'",  # Python reads infinity, which is not valid JSON
        f"payload = '{'9' * 5000}'",
        "type = x'6162'",
    ],
)
def test_reading_commands_invalid_stored_value_exits_1(
    embedded: Database, call: Call, change: str
) -> None:
    id = ExecutionManager(SqlExecutionStore(embedded.engine)).create("a").id
    embedded.run(f"UPDATE executions SET {change}")
    for command in (["list", "--json", "--with", "payload"], ["watch", id, "--json"]):
        code, out, err = call(embedded.url, *command)
        assert code in (0, 1)
        assert (out == "") == (code == 1)
        if code == 0:
            json.loads(out, parse_constant=pytest.fail)
        else:
            assert "a stored value is invalid: " in err
    assert call(embedded.url, "list", "--json", "--with", "payload")[0] == 1
