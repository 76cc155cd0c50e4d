"""`execution-core run --run-anyway`: the database is unavailable."""

import os
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import make_url

from ...support.postgres import free_port
from .shell import Shell, wait_for
from .test_run import open_access

WAITS = "echo ran >> ran; while [ ! -e enough ]; do sleep 0.02; done; echo done"


@dataclass(frozen=True)
class Outage:
    """A database that is unavailable until `end()`."""

    url: str
    end: Callable[[], object]
    begin: Callable[[], object]


@contextmanager
def outage(shell: Shell) -> Iterator[Outage]:
    """Move the file of SQLite away, or refuse the role of the command on PostgreSQL."""
    if shell.database.name == "sqlite":
        shell.database.engine.dispose()
        file = Path(make_url(shell.database.url).database or "")
        away = file.with_name("away")

        def begin() -> None:
            shell.database.engine.dispose()
            file.rename(away)

        begin()
        yield Outage(shell.database.url, lambda: away.rename(file), begin)
        if away.exists():
            assert not file.exists(), "an empty file was created"
            away.rename(file)
        return
    with open_access(shell.database) as access:
        access.block()
        yield Outage(access.url, access.unblock, access.block)


@pytest.mark.slow
def test_run_anyway_is_recorded_when_the_database_is_back(shell: Shell) -> None:
    with outage(shell) as database:
        process = shell.begin(
            *("--run-anyway", "--key", "k", "--", "sh", "-c", f"{WAITS}; exit 3"), url=database.url
        )
        wait_for((shell.folder / "ran").exists)
        database.end()
        (shell.folder / "enough").touch()
        code, out, err = shell.end(process)
        assert (code, out) == (3, b"done\n")
        assert "execution-core: The command runs without a record: " in err
        assert "NOT RECORDED" not in err
        assert shell.attempts() == [("failed", "exit_3")]
        execution = shell.execution
        assert execution.idempotency_key == "k"
        assert execution.error is not None
        assert execution.error.stack == "done\n"
        (entry,) = shell.manager.logs(execution.id)
        assert entry.level == "warning"
        assert entry.message.startswith("The command ran from 2")
        assert entry.message.endswith("Z, while the database was unavailable")


@pytest.mark.exhaustive
def test_run_anyway_without_database_exits_69(shell: Shell) -> None:
    (shell.folder / "enough").touch()
    with outage(shell) as database:
        code, out, err = shell.run(
            *("--run-anyway", "--record-for", "200ms", "--", "sh", "-c", WAITS), url=database.url
        )
        assert (code, out) == (69, b"done\n")
        assert "NOT RECORDED: The command ran: Exited with status 0. Not recorded because: " in err
        assert err.endswith(" A later call runs the command again, as this one has no record\n")
    assert (shell.folder / "ran").read_text() == "ran\n"
    assert shell.manager.list() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///missing.db",
        "sqlite:///no/such/directory/x.db",
        "sqlite:///file:missing.db?uri=true",
        "sqlite:///with space %23 %3F %25 é.db",
        "postgresql://nobody:secret@127.0.0.1:{port}/x",
    ],
)
def test_run_anyway_unreachable_runs_once_and_creates_nothing(embedded: Shell, url: str) -> None:
    before = {each.name for each in embedded.folder.iterdir()}
    options = ("--run-anyway", "--max-attempts", "2", "--record-for", "100ms")
    command = ("--", "sh", "-c", "echo $EXECUTION_ID$EXECUTION_ATTEMPT; exit 4")
    code, out, err = embedded.run(*options, *command, url=url.format(port=free_port()))
    assert (code, out) == (69, b"\n")
    assert "NOT RECORDED: The command ran: Exited with status 4" in err
    assert "secret" not in err
    assert {each.name for each in embedded.folder.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("url", ["sqlite:///a b %23%3F%25é.db", "sqlite:///file:a%20b.db?uri=true"])
def test_run_anyway_with_odd_file_name_uses_the_database(embedded: Shell, url: str) -> None:
    """It opens a file by another form of the URL, and must find the same file."""
    parsed = make_url(url).database or ""
    name = "a b.db" if parsed.startswith("file:") else parsed
    file = embedded.folder / name
    embedded.database.engine.dispose()
    Path(make_url(embedded.database.url).database or "").rename(file)
    script = "execution-core log inside; echo $EXECUTION_ATTEMPT"
    code, out, err = embedded.run("--run-anyway", "--", "sh", "-c", script, url=url)
    assert (code, out, err) == (0, b"1\n", "")
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT status FROM executions").fetchall() == [("completed",)]
        assert connection.execute("SELECT message FROM execution_logs").fetchall() == [("inside",)]


def test_run_anyway_file_that_is_no_database_stays_unchanged(embedded: Shell) -> None:
    content = b"no database " * 1000
    file = embedded.folder / "other.db"
    file.write_bytes(content)
    options = ("--run-anyway", "--record-for", "100ms")
    code, out, err = embedded.run(*options, "--", "echo", "ran", url="sqlite:///other.db")
    assert (code, out) == (69, b"ran\n")
    assert "NOT RECORDED: The command ran: Exited with status 0" in err
    assert file.read_bytes() == content


@pytest.mark.exhaustive
def test_run_anyway_server_that_does_not_answer_can_be_interrupted(embedded: Shell) -> None:
    """Nothing runs before the connection has failed, and SIGTERM ends the wait."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://nobody@127.0.0.1:{server.getsockname()[1]}/x"
        process = embedded.begin("--run-anyway", "--", "touch", "ran", url=url)
        connection, _ = server.accept()
        process.terminate()
        code, _, err = embedded.end(process)
        connection.close()
    assert (code, "while no attempt was running" in err) == (143, True)
    assert not (embedded.folder / "ran").exists()


def test_run_anyway_reports_inside_are_ignored_with_a_warning(embedded: Shell) -> None:
    script = (
        'echo "id=$EXECUTION_ID."; execution-core progress 1 2 && execution-core log hello'
        " && execution-core checkpoint at 5 && echo written; execution-core checkpoint at; echo $?"
    )
    options = ("--run-anyway", "--record-for", "100ms")
    code, out, err = embedded.run(*options, "--", "sh", "-c", script, url="sqlite:///missing.db")
    assert (code, out) == (69, b"id=.\nwritten\n3\n")
    assert err.count("nothing was written: this command runs without a record") == 4


def test_run_anyway_log_of_standard_input_is_ignored_with_a_warning(embedded: Shell) -> None:
    """It does not use the socket of `run`."""
    script = "echo line | execution-core log -"
    options = ("--run-anyway", "--record-for", "100ms")
    code, _, err = embedded.run(*options, "--", "sh", "-c", script, url="sqlite:///missing.db")
    assert "nothing was written: this command runs without a record" in err
    assert (code, "Exited with status 0" in err) == (69, True)


@pytest.mark.exhaustive
def test_run_without_run_anyway_missing_file_refused(embedded: Shell) -> None:
    code, out, err = embedded.run("--", "echo", "ran", url="sqlite:///missing.db")
    assert (code, out) == (1, b"")
    assert "names a file that does not exist" in err
    assert not (embedded.folder / "missing.db").exists()


def test_run_anyway_first_attempt_counts_and_second_is_recorded(embedded: Shell) -> None:
    """The input of the first attempt, which has no record, is given to the second one."""
    script = f"cat; [ $EXECUTION_ATTEMPT ] && exit 0; {WAITS}; exit 3"
    reader, writer = os.pipe()
    os.write(writer, b"input\n")
    os.close(writer)
    with outage(embedded) as database:
        process = embedded.begin(
            *("--run-anyway", "--max-attempts", "2", "--", "sh", "-c", script), stdin=reader
        )
        os.close(reader)
        wait_for((embedded.folder / "ran").exists)
        database.end()
        (embedded.folder / "enough").touch()
        assert embedded.end(process)[:2] == (0, b"input\ndone\ninput\n")
        assert embedded.attempts() == [("failed", "exit_3"), ("completed", None)]


@pytest.mark.slow
def test_run_anyway_later_attempt_without_database_is_of_the_same_execution(shell: Shell) -> None:
    """The database is away between the attempts: no second execution may appear."""
    script = f"[ ! -e first ] && touch first && exit 3; {WAITS}"
    with outage(shell) as database:
        database.end()
        process = shell.begin(
            *("--run-anyway", "--max-attempts", "2", "--backoff", "2s", "--", "sh", "-c", script),
            url=database.url,
        )
        wait_for(lambda: shell.is_("retrying"))
        database.begin()
        wait_for((shell.folder / "ran").exists)
        database.end()
        (shell.folder / "enough").touch()
        assert shell.end(process)[0] == 0
        assert shell.attempts() == [("failed", "exit_3"), ("completed", None)]
        assert len(shell.manager.list()) == 1


def test_run_anyway_locked_between_create_and_start_leaves_one_execution(embedded: Shell) -> None:
    """The start fails after the execution was created: the record is for that execution."""
    embedded.database.run(
        "CREATE TRIGGER refuse BEFORE UPDATE ON executions WHEN NEW.status = 'running'"
        " BEGIN SELECT RAISE(ABORT, 'locked by the test'); END"
    )
    command = ("--", "sh", "-c", WAITS)
    process = embedded.begin("--run-anyway", *command)
    wait_for((embedded.folder / "ran").exists)
    embedded.database.run("DROP TRIGGER refuse")
    (embedded.folder / "enough").touch()
    assert embedded.end(process)[0] == 0
    assert embedded.execution.status == "completed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ("completed", "is completed: it ran twice"),
        ("running", "is running elsewhere: it ran twice"),
        ("cancelled", "is cancelled"),
        ("failed", "has used its attempts"),
    ],
)
def test_run_anyway_of_a_key_that_allows_no_attempt_says_so(
    shell: Shell, status: str, problem: str
) -> None:
    command = ["sh", "-c", WAITS]
    id = shell.manager.create("sh", {"command": command}, idempotency_key="k").id
    if status == "cancelled":
        shell.manager.cancel(id)
    else:
        shell.manager.start(id)
    if status == "completed":
        shell.manager.complete(id, "elsewhere")
    if status == "failed":
        shell.manager.fail(id, "elsewhere")
    before = shell.execution
    with outage(shell) as database:
        process = shell.begin("--run-anyway", "--key", "k", "--", *command, url=database.url)
        wait_for((shell.folder / "ran").exists)
        database.end()
        (shell.folder / "enough").touch()
        code, _, err = shell.end(process)
        assert (code, "NOT RECORDED: The command ran: Exited with status 0. " in err) == (69, True)
        assert err.endswith(f" The command ran although execution {id} of this key {problem}\n")
        assert shell.execution == before
        (entry,) = shell.manager.logs(id)
        assert entry.message.startswith("The command ran from 2")
        assert entry.data == {"outcome": "Exited with status 0", "output": "done\n"}


@pytest.mark.exhaustive
def test_run_anyway_available_completed_key_does_not_run(embedded: Shell) -> None:
    command = ("--run-anyway", "--key", "k", "--", "sh", "-c", "echo ran")
    assert embedded.run(*command)[:2] == (0, b"ran\n")
    assert embedded.run(*command)[:2] == (0, b"")
    assert embedded.attempts() == [("completed", None)]


@pytest.mark.exhaustive
def test_run_anyway_sigterm_is_recorded_as_interrupted(embedded: Shell) -> None:
    with outage(embedded) as database:
        process = embedded.begin("--run-anyway", "--", "sh", "-c", WAITS)
        wait_for((embedded.folder / "ran").exists)
        database.end()
        process.send_signal(signal.SIGTERM)
        assert embedded.end(process)[0] == 143
        assert embedded.attempts() == [("failed", "interrupted")]


def test_run_anyway_id_without_command_refused(embedded: Shell) -> None:
    options = ("--run-anyway", "--id", "0198a000")
    code, out, err = embedded.run(*options, url="sqlite:///missing.db")
    assert (code, out) == (1, b"")
    assert "The command is in the database: give it after --" in err


@pytest.mark.exhaustive
def test_run_anyway_id_with_command_is_an_attempt_of_it(shell: Shell) -> None:
    created = shell.manager.create("job")
    with outage(shell) as database:
        process = shell.begin(
            *("--run-anyway", "--id", created.id, "--", "sh", "-c", WAITS), url=database.url
        )
        wait_for((shell.folder / "ran").exists)
        database.end()
        (shell.folder / "enough").touch()
        assert shell.end(process)[0] == 0
        assert (shell.execution.id, shell.execution.status) == (created.id, "completed")


@pytest.mark.exhaustive
def test_run_anyway_inside_a_run_without_record_has_no_parent(embedded: Shell) -> None:
    inner = "execution-core run --run-anyway --record-for 100ms -- sh -c 'echo inner; exit 5'"
    options = ("--run-anyway", "--record-for", "100ms")
    code, out, err = embedded.run(*options, "--", "sh", "-c", inner, url="sqlite:///missing.db")
    assert (code, out) == (69, b"inner\n")
    assert "NOT RECORDED: The command ran: Exited with status 69" in err
