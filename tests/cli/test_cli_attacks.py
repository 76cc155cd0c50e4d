"""The command line in bad company: closed streams, odd terminals, hostile values, hands in SQL."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, make_url

from execution_core import ExecutionManager, SqlExecutionStore
from execution_core.cli import main

from ..conftest import Database, open_database

PROGRAM = Path(sys.executable).with_name("execution-core")

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plain(database: Database) -> ExecutionManager:
    return ExecutionManager(SqlExecutionStore(database.engine))


@pytest.fixture
def embedded(request: pytest.FixtureRequest) -> Iterator[Database]:
    """SQLite alone, for what does not depend on the database."""
    with open_database("sqlite", request) as database:
        yield database


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line in this process: its exit code, and what it wrote."""

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


# --- standard streams -----------------------------------------------------------------------------


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
def test_closed_and_full_streams(embedded: Database, command: str, code: int) -> None:
    ExecutionManager(SqlExecutionStore(embedded.engine)).create("a")
    done = in_shell(command, embedded.url)
    assert done.returncode == code
    # What is meant for a closed stream never lands in the other one.
    assert done.stdout == "" or json.loads(done.stdout) == {"executions": [], "next_before": None}
    assert done.stderr in ("", "execution-core: [Errno 28] No space left on device\n")


def test_a_stream_that_knows_few_characters(embedded: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(embedded.engine))
    job = manager.create("ünï", {"text": "漢字"})
    done = in_shell(f"PROGRAM show {job.id}", embedded.url, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\xfcn\xef" in done.stdout
    assert r"\u6f22" in done.stdout


def test_a_sweep_of_which_nobody_reads(database: Database, plain: ExecutionManager) -> None:
    # More than the buffer of a pipe's writer, so that it breaks while the sweep is about it.
    for _ in range(250):
        plain.start(plain.create("a").id)
    database.run("UPDATE executions SET timeout_ms = 1000, deadline_at = started_at")
    in_shell("PROGRAM sweep | true", database.url)
    assert database.rows("SELECT DISTINCT status FROM executions") == [{"status": "timed_out"}]


# --- terminals ------------------------------------------------------------------------------------


def in_a_terminal(columns: int, *arguments: str) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "NO_COLOR": "1"}
    running = subprocess.Popen(
        [PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return running.wait(), re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", written.decode())


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_list_leaves_nothing_out(embedded: Database, columns: int) -> None:
    manager = ExecutionManager(SqlExecutionStore(embedded.engine))
    job = manager.create("send-newsletter-to-all-customers")
    manager.start(job.id, worker="worker-host-1:12345")
    manager.fail(job.id, "Exited with status 1: cannot stat '/mnt/backup'", retryable=False)
    done = manager.create("a")
    manager.start(done.id)
    manager.complete(done.id)
    code, seen = in_a_terminal(columns, "list", "--url", embedded.url)
    assert code == 0
    words = seen.split()
    assert {job.id[:13], "ATTEMPT", "failed", "completed", "1/1", "Exited"} <= set(words)
    letters = "".join(words)
    assert all(letter in letters for letter in "send-newsletter")
    if columns < 80:
        assert "worker-host-1:12345" in letters


def test_a_narrow_watch(embedded: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(embedded.engine))
    job = manager.create("漢" * 30)
    manager.start(job.id)
    manager.update_progress(job.id, 1, 2)
    manager.complete(job.id)
    code, seen = in_a_terminal(30, "watch", job.id, "--url", embedded.url)
    assert code == 0, seen
    assert job.id[:5] in seen


def test_wide_characters_take_their_room(embedded: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(embedded.engine))
    job = manager.create("漢" * 24)
    manager.start(job.id)
    manager.complete(job.id)
    _, seen = in_a_terminal(80, "watch", job.id, "--url", embedded.url)
    assert job.id[:13] in seen  # not cut for the sake of what is less important


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("list", "--newer-than", "999999999d"), 1, "INVALID_VALUE: age must be at least 0 and at"),
        (("list", "--older-than", "900000d"), 1, "INVALID_VALUE: age must be at least 0 and at"),
        (("list", "--finished-within", "900000d"), 1, "INVALID_VALUE: age must be at least 0"),
        (("list", "--type", "\udcff"), 1, "INVALID_VALUE: type must not contain a lone surrogate"),
        (("list", "--type", ""), 1, "INVALID_VALUE: type must not be empty"),
        (("list", "--limit", "0000100001"), 2, "must be a whole number from 1 to 10000"),
        (
            ("watch", "--json", "--every", "999999999d"),
            1,
            "INVALID_VALUE: every must be more than 0",
        ),
        (("watch", "--json", "--every", "0s"), 1, "INVALID_VALUE: every must be more than 0"),
    ],
)
def test_what_is_refused(
    embedded: Database, call: Call, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ended, out, err = call(embedded.url, *arguments)
    assert (ended, out) == (code, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--backoff 99999999d -- true", 1, "INVALID_VALUE: backoff must be more than 0"),
        ("-- ''", 2, "there is no COMMAND"),
        ("-- /", 126, "'/' cannot be run: Permission denied"),
        (f"-- {'x' * 300}", 126, "cannot be run: File name too long"),
    ],
)
def test_what_cannot_be_run(embedded: Database, arguments: str, code: int, message: str) -> None:
    done = in_shell(f"PROGRAM run {arguments}", embedded.url)
    assert done.returncode == code
    assert message in done.stderr


@pytest.mark.parametrize("width", ["36500d", "36499d"])
@pytest.mark.parametrize("option", ["--newer-than", "--older-than", "--finished-within"])
def test_the_longest_ages(database: Database, call: Call, option: str, width: str) -> None:
    assert call(database.url, "list", option, width, "--json")[0] == 0


# --- URLs -----------------------------------------------------------------------------------------


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
def test_a_password_in_the_wrong_place_is_not_repeated(
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


def test_a_port_is_no_password(call: Call) -> None:
    assert (
        "postgresql://127.0.0.1:1/d: connection failed"
        in call("postgresql://127.0.0.1:1/d", "list")[2]
    )


def test_what_a_server_repeats_cannot_move_the_cursor(
    postgres_database: Database, call: Call
) -> None:
    url = make_url(postgres_database.url).set(database="no\x1b[2Jne")
    code, _, err = call(url.render_as_string(hide_password=False), "list")
    assert code == 1
    assert r'database "no\x1b[2Jne" does not exist' in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "INVALID_VALUE: url is in memory"),
        ("sqlite:///:memory:", "INVALID_VALUE: url is in memory"),
        ("sqlite:///\udcff.db", "INVALID_VALUE: url must not contain a lone surrogate"),
        ("sqlite:///.", "unable to open database file"),
    ],
)
def test_what_is_no_file(call: Call, url: str, message: str) -> None:
    code, out, err = call(url, "list")
    assert (code, out) == (1, "")
    assert message in err


def test_the_name_of_a_file_is_too_long() -> None:
    done = in_shell("PROGRAM list", f"sqlite:///{'x' * 300}.db")
    assert done.returncode == 1
    assert "File name too long" in done.stderr
    assert "Traceback" not in done.stderr


# --- others at work -------------------------------------------------------------------------------


def test_reading_waits_for_no_writer(embedded: Database, call: Call) -> None:
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
def test_what_is_deleted_while_it_is_read(
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


# --- rows written by hand -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "payload = '1e400'",  # to Python an infinity, which is no JSON
        f"payload = '{'9' * 5000}'",
        "created_at = '2026-02-30T00:00:00.000Z'",
        "created_at = '2026-01-01T24:00:00.000Z'",
        "type = x'6162'",
    ],
)
def test_what_python_cannot_read(embedded: Database, call: Call, change: str) -> None:
    id = ExecutionManager(SqlExecutionStore(embedded.engine)).create("a").id
    embedded.run(f"UPDATE executions SET {change}")
    for command in (["list", "--json", "--with", "payload"], ["watch", id, "--json"]):
        code, out, err = call(embedded.url, *command)
        assert code in (0, 1)
        assert (out == "") == (code == 1)
        if code == 0:
            json.loads(out, parse_constant=pytest.fail)
        else:
            assert "this cannot be read: " in err
    assert call(embedded.url, "list", "--json", "--with", "payload")[0] == 1
