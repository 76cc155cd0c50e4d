"""`execution-core run` with real commands, processes and signals."""

import errno
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from execution_core import AttemptLost, Execution, ExecutionManager, SqlExecutionStore
from execution_core.cli import main
from execution_core.cli.run import exit_codes
from execution_core.cli.run.child_process import TAIL_BYTES, TAIL_LINES, ChildProcess
from execution_core.cli.run.events import EventQueue
from execution_core.cli.run.standard_input import AttemptInput
from execution_core.cli.run.supervisor import Command

from ...conftest import Database
from .shell import PATIENCE, PROGRAM, Shell, is_gone, wait_for

# No process of the group ends on SIGTERM. Each writes its pid, and would outlive the test.
FAMILY = """
trap '' TERM
sh -c 'echo $$ >> pids; exec sleep 600' &
(sh -c 'echo $$ >> pids; exec sleep 600' &)
echo $$ >> pids
echo "begun $EXECUTION_ATTEMPT"
wait
"""


def assert_group_ended(shell: Shell, members: int) -> None:
    pids = shell.pids()
    assert len(pids) == members
    wait_for(lambda: all(map(is_gone, pids)))


# Commands


@pytest.mark.slow
def test_run_successful_command_is_completed(shell: Shell) -> None:
    script = (
        "echo out; echo err >&2; cat;"
        " echo $EXECUTION_ID $EXECUTION_ATTEMPT >&2; execution-core progress 30 100"
    )
    (shell.folder / "input").write_text("given\n")
    with (shell.folder / "input").open() as file:
        code, out, err = shell.run("--type", "job", "--", "sh", "-c", script, stdin=file)
    execution = shell.execution
    assert (code, out, err) == (0, b"out\ngiven\n", f"err\n{execution.id} 1\n")
    assert (execution.type, execution.status) == ("job", "completed")
    assert execution.payload == {"command": ["sh", "-c", script]}
    assert execution.result["exit_status"] == 0
    assert sorted(execution.result["output"].split("\n")) == sorted(
        (out.decode() + err).split("\n")
    )
    assert execution.progress is not None
    assert (execution.progress.current, execution.worker is not None) == (30, True)


def test_run_third_attempt_succeeds_is_completed(embedded: Shell) -> None:
    script = 'echo "try $EXECUTION_ATTEMPT"; [ $EXECUTION_ATTEMPT = 3 ] || exit $EXECUTION_ATTEMPT'
    options = ("--max-attempts", "5", "--backoff", "10ms", "--quiet")
    code, out, err = embedded.run(*options, "--", "sh", "-c", script)
    assert (code, out) == (0, b"try 1\ntry 2\ntry 3\n")
    assert "Attempt 2 of 5" in err
    assert err.endswith(f": Attempt 3 of 5 of execution {embedded.execution.id} completed\n")
    assert embedded.attempts() == [("failed", "exit_1"), ("failed", "exit_2"), ("completed", None)]
    assert embedded.execution.result == {"exit_status": 0, "output": "try 3\n"}


def test_run_all_attempts_used_refused(embedded: Shell) -> None:
    script = 'echo "cannot $EXECUTION_ATTEMPT" >&2; kill -9 $$'
    again = ("--key", "k", "--max-attempts", "2", "--", "sh", "-c", script)
    code, _, err = embedded.run(*again)
    assert (code, err.count("cannot")) == (128 + 9, 2)
    error = embedded.execution.error
    assert error is not None
    assert (error.code, error.message) == ("SIGKILL", "Ended by SIGKILL: cannot 2")
    assert error.stack == "cannot 2\n"
    code, out, err = embedded.run(*again)
    assert (code, out) == (1, b"")
    assert "MAX_RETRIES_EXCEEDED" in err
    assert len(embedded.attempts()) == 2


def test_run_timeout_kills_group_and_times_out(embedded: Shell) -> None:
    code, out, _ = embedded.run(
        *("--timeout", "500ms", "--kill-after", "100ms", "--max-attempts", "2"),
        *("--", "sh", "-c", FAMILY),
    )
    assert (code, out) == (124, b"begun 1\nbegun 2\n")
    assert_group_ended(embedded, 6)
    assert embedded.attempts() == [("timed_out", "timeout"), ("timed_out", "timeout")]
    second, first = embedded.manager.logs(embedded.execution.id)
    assert (first.data, second.data) == ({"output": "begun 1\n"}, {"output": "begun 2\n"})


@pytest.mark.exhaustive
def test_run_timeout_waits_for_sigterm_handler(embedded: Shell) -> None:
    script = "trap 'echo tidied; exit 0' TERM; echo $$ >> pids; sleep 600 & wait"
    code, out, _ = embedded.run("--timeout", "1s", "--", "sh", "-c", script)
    assert (code, out) == (124, b"tidied\n")
    assert_group_ended(embedded, 1)
    assert embedded.attempts() == [("timed_out", "timeout")]


@pytest.mark.slow
def test_run_cancelled_meanwhile_exits_143(shell: Shell) -> None:
    process = shell.begin(
        *("--heartbeat", "50ms", "--kill-after", "100ms", "--max-attempts", "2"),
        *("--", "sh", "-c", FAMILY),
    )
    wait_for(lambda: len(shell.pids()) == 3)
    shell.manager.cancel(shell.execution.id, "no longer wanted")
    code, _, err = shell.end(process)
    assert code == 143
    assert "was cancelled: no longer wanted. The command: " in err
    assert_group_ended(shell, 3)
    assert shell.attempts() == [("cancelled", None)]
    (entry,) = shell.manager.logs(shell.execution.id)
    assert (entry.level, entry.data) == ("warning", {"output": "begun 1\n"})


IN_TERMINAL = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def terminal(shell: Shell, kind: str, *arguments: str) -> "Iterator[tuple[int, Any]]":
    tty, slave = os.openpty()
    try:
        yield (
            tty,
            shell.begin(
                *arguments,
                program=[sys.executable, "-c", IN_TERMINAL, kind, PROGRAM],
                **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
            ),
        )
    finally:
        os.close(slave)


def test_run_terminal_closed_ends_group(embedded: Shell) -> None:
    with terminal(embedded, "hup", "--kill-after", "100ms", "--", "sh", "-c", FAMILY) as (tty, run):
        wait_for(lambda: len(embedded.pids()) == 3)
    os.close(tty)
    assert run.wait(PATIENCE) == 128 + signal.SIGHUP
    assert_group_ended(embedded, 3)
    assert embedded.attempts() == [("failed", "interrupted")]
    error = embedded.execution.error
    assert error is not None
    assert (error.message, error.stack) == ("Interrupted by SIGHUP", "begun 1\n")


@pytest.mark.exhaustive
def test_run_terminal_closed_under_nohup_continues(embedded: Shell) -> None:
    script = "cat; touch begun; while [ ! -e closed ]; do sleep 0.02; done; echo a; echo b >&2"
    with terminal(embedded, "nohup", "--", "sh", "-c", script) as (tty, run):
        wait_for((embedded.folder / "begun").exists)
    os.close(tty)
    (embedded.folder / "closed").touch()
    assert run.wait(PATIENCE) == 0
    assert embedded.execution.result == {"exit_status": 0, "output": "a\nb\n"}


@pytest.mark.slow
def test_run_concurrent_calls_of_one_key_run_once(shell: Shell) -> None:
    script = "echo ran >> ran; while [ ! -e enough ]; do sleep 0.02; done"
    arguments = ("--key", "nightly", "--", "sh", "-c", script)
    processes = [shell.begin(*arguments) for _ in range(3)]
    wait_for(lambda: sum(process.poll() is not None for process in processes) == 2)
    (shell.folder / "enough").touch()
    ended = [shell.end(process) for process in processes]
    assert sorted(code for code, _, _ in ended) == [0, 75, 75]
    assert (
        sum(
            "ALREADY_RUNNING" in err and "run this command with --stalled-after" in err
            for _, _, err in ended
        )
        == 2
    )
    code, _, err = shell.run(*arguments)
    ended_at = shell.execution.completed_at
    assert ended_at is not None
    assert (
        code,
        f"was completed at {ended_at:%Y-%m-%d %H:%M:%S}Z: the command was not" in err,
    ) == (
        0,
        True,
    )
    assert shell.run("--quiet", *arguments) == (0, b"", "")
    assert (shell.folder / "ran").read_text() == "ran\n"
    assert shell.attempts() == [("completed", None)]


def test_run_missing_command_exits_127(embedded: Shell) -> None:
    code, _, err = embedded.run("--max-attempts", "2", "--", "no-such-command")
    assert code == 127
    assert "'no-such-command' cannot be run: No such file or directory" in err
    assert embedded.attempts() == [("failed", "not_found")]


def test_run_file_without_interpreter_line_exits_126(embedded: Shell) -> None:
    program = embedded.folder / "program"
    program.write_text("no first line that names an interpreter")
    program.chmod(0o755)
    code, _, err = embedded.run("--max-attempts", "2", "--", str(program))
    assert (code, "#!/bin/sh" in err) == (126, True)
    assert embedded.attempts() == [("failed", "not_executable")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("#!/no/such/shell\n", "its interpreter '/no/such/shell' was not found"),
        ("#!/bin/sh\r\n", "its interpreter '/bin/sh' was not found; the file has CRLF line ends"),
    ],
)
def test_run_missing_interpreter_is_named(tmp_path: Path, line: str, message: str) -> None:
    program = tmp_path / "program"
    program.write_bytes(line.encode())
    program.chmod(0o755)
    with pytest.raises(FileNotFoundError) as caught:
        subprocess.run([program], check=False)
    outcome = exit_codes.after_start_failure([str(program)], caught.value)
    assert (outcome.code, message in outcome.message) == (127, True)


def test_run_shell_command_in_one_word_advises_sh() -> None:
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    outcome = exit_codes.after_start_failure(["echo hi; ls"], missing)
    assert outcome.message.endswith(". To run a shell command: -- sh -c 'echo hi; ls'")


@pytest.mark.slow
def test_run_binary_output_is_forwarded_and_stored(shell: Shell) -> None:
    printed = b"\0\xff\xfe \xc3\xa9 \x1b[1m\r\n\xed\xa0\x80" + bytes(range(256))
    (shell.folder / "binary").write_bytes(printed)
    script = "cat binary; [ $EXECUTION_ATTEMPT = 2 ]"
    code, out, _ = shell.run("--max-attempts", "2", "--", "sh", "-c", script)
    assert (code, out) == (0, printed * 2)
    # A terminal would show \x0b\x0c no longer: \r returns to the begin of the line.
    kept = printed.replace(b"\x0b\x0c\r", b"").decode(errors="replace").replace("\0", "\ufffd")
    assert shell.execution.result == {"exit_status": 0, "output": kept}
    (failed,) = shell.database.rows(
        "SELECT error ->> 'stack' AS stack FROM execution_attempts WHERE outcome = 'failed'"
    )
    assert failed["stack"] == kept


# Signals


def test_run_sigterm_is_forwarded_and_recorded(embedded: Shell) -> None:
    assert_forwarded(embedded, signal.SIGTERM)
    assert embedded.attempts() == [("failed", "interrupted")]


def test_run_after_sigint_next_call_retries(embedded: Shell) -> None:
    arguments = assert_forwarded(embedded, signal.SIGINT)
    assert embedded.run(*arguments)[0] == 0
    assert embedded.attempts() == [("failed", "interrupted"), ("completed", None)]


def assert_forwarded(shell: Shell, number: signal.Signals) -> tuple[str, ...]:
    """The command handles the signal and exits with 0; the attempt still counts as failed."""
    trap = f"trap 'echo received; exit 0' {number.name[3:]}; echo $$ >> pids; sleep 600 & wait"
    script = f"[ $EXECUTION_ATTEMPT = 2 ] && exit 0; {trap}"
    options = ("--key", "k", "--max-attempts", "2", "--kill-after", "100ms")
    arguments = (*options, "--", "sh", "-c", script)
    process = shell.begin(*arguments)
    wait_for(shell.pids)
    process.send_signal(number)
    code, out, err = shell.end(process)
    assert (code, out) == (128 + number, b"received\n")
    assert err.count("Interrupted by") == err.count(f": Interrupted by {number.name}\n") == 1
    assert_group_ended(shell, 1)
    assert shell.is_("retrying")
    return arguments


def test_run_signal_between_attempts_exits(embedded: Shell) -> None:
    process = embedded.begin("--max-attempts", "2", "--backoff", "1h", "--", "sh", "-c", "exit 3")
    wait_for(lambda: embedded.is_("retrying"))
    process.terminate()
    code, _, err = embedded.end(process)
    assert (code, "while no attempt was running" in err) == (143, True)
    assert embedded.is_("retrying")
    assert embedded.attempts() == [("failed", "exit_3")]


def test_run_signal_during_start_runs_nothing(tmp_path: Path) -> None:
    """The signal arrives before there is a command: nothing runs, on any database."""
    events = EventQueue()
    events.interrupted = signal.SIGINT
    nothing = AttemptInput(None)
    command = Command(["touch", f"{tmp_path}/ran"], os.environ, nothing, timedelta(0), events)
    outcome = command.run(threading.Event(), None)
    assert (outcome.code, list(tmp_path.iterdir())) == (130, [])


def test_run_signal_while_database_hangs_exits(postgres_database: Database, tmp_path: Path) -> None:
    """PostgreSQL only: it shows which session waits for a lock."""
    shell = Shell(postgres_database, tmp_path)
    try:
        with postgres_database.engine.begin() as connection:
            connection.execute(text("LOCK TABLE executions IN EXCLUSIVE MODE"))
            process = shell.begin("--", "touch", "ran")
            waits = (
                "SELECT 1 FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            wait_for(lambda: postgres_database.rows(waits))
            process.terminate()
            assert shell.end(process)[0] == 143
    finally:
        shell.close()
    assert list(tmp_path.iterdir()) == []


# Changes by others


@pytest.mark.slow
def test_run_after_kill_stalled_after_takes_over(shell: Shell) -> None:
    script = "[ $EXECUTION_ATTEMPT = 2 ] && exit 0; echo $$ >> pids; exec sleep 600"
    again = ("--type", "job", "--key", "k", "--max-attempts", "2", "--heartbeat", "50ms")
    process = shell.begin(*again, "--", "sh", "-c", script)
    wait_for(shell.pids)
    bystander = shell.manager.create("job")
    shell.manager.start(bystander.id, worker="silent")
    process.kill()
    process.wait()
    wait_for(
        lambda: (
            shell.run(
                *again, "--heartbeat", "500ms", "--stalled-after", "1s", "--", "sh", "-c", script
            )[0]
            == 0
        )
    )
    assert shell.manager.get(bystander.id).status == "running"
    shell.manager.delete(bystander.id)
    assert shell.attempts() == [("timed_out", "stalled"), ("completed", None)]


def start_silent(shell: Shell, max_attempts: int) -> Execution:
    """Start an attempt of the key `k` whose last sign of life is two minutes old."""
    past = lambda: datetime.now(UTC) - timedelta(minutes=2)  # noqa: E731
    manager = ExecutionManager(SqlExecutionStore(shell.database.engine, clock=past))
    payload = {"command": ["true"]}
    created = manager.create("true", payload, idempotency_key="k", max_attempts=max_attempts)
    return manager.start(created.id, worker="dead")


def test_run_quiet_names_a_run_elsewhere_that_may_be_dead(shell: Shell) -> None:
    command = ("--quiet", "--key", "k", "--", "true")
    id = start_silent(shell, 1).id
    code, _, err = shell.run(*command)
    assert (code, f"ALREADY_RUNNING: Execution {id} " in err) == (75, True)
    assert "worker 'dead'. Its last heartbeat was 2m 0" in err
    shell.manager.heartbeat(id)
    assert shell.run(*command) == (75, b"", "")


@pytest.mark.parametrize("max_attempts", [1, 2])
def test_run_quiet_names_the_attempt_that_it_takes_over(shell: Shell, max_attempts: int) -> None:
    start_silent(shell, max_attempts)
    options = ("--quiet", "--key", "k", "--max-attempts", f"{max_attempts}")
    code, _, err = shell.run(*options, "--stalled-after", "1m", "--", "true")
    first, *others = err.splitlines()
    assert first.startswith("execution-core: Attempt 1 of dead was silent for 2m 0")
    if max_attempts == 2:
        assert (code, others) == (0, [])
        assert first.endswith("s: taking over")
    else:
        assert (code, "MAX_RETRIES_EXCEEDED" in others[0]) == (1, True)
        assert first.endswith("s: it is timed out")


@pytest.mark.exhaustive
def test_run_timed_out_by_sweep_retries(embedded: Shell) -> None:
    script = f"[ $EXECUTION_ATTEMPT = 2 ] && exit 0; {FAMILY}"
    process = embedded.begin(
        *("--heartbeat", "50ms", "--kill-after", "100ms", "--max-attempts", "2"),
        *("--", "sh", "-c", script),
    )
    wait_for(lambda: len(embedded.pids()) == 3)
    embedded.manager.timeout(embedded.execution.id)
    assert embedded.end(process)[0] == 0
    assert_group_ended(embedded, 3)
    assert embedded.attempts() == [("timed_out", "timeout"), ("completed", None)]


def test_run_taken_over_exits_75(embedded: Shell) -> None:
    process = embedded.begin(
        *("--heartbeat", "50ms", "--kill-after", "100ms", "--max-attempts", "3"),
        *("--", "sh", "-c", FAMILY),
    )
    wait_for(lambda: len(embedded.pids()) == 3)
    id = embedded.execution.id
    with embedded.database.engine.begin() as connection:
        inside = embedded.manager.within(connection)
        inside.timeout(id)
        inside.retry(id)
        inside.start(id, worker="another")
    code, _, err = embedded.end(process)
    assert (code, "attempt 2 has taken over" in err) == (75, True)
    assert_group_ended(embedded, 3)
    assert embedded.execution.worker == "another"


def test_run_deleted_execution_exits_1(embedded: Shell) -> None:
    process = embedded.begin("--heartbeat", "50ms", "--kill-after", "1ms", "--", "sh", "-c", FAMILY)
    wait_for(lambda: len(embedded.pids()) == 3)
    embedded.manager.delete(embedded.execution.id)
    code, _, err = embedded.end(process)
    assert (code, "was deleted. The command: " in err) == (1, True)
    assert_group_ended(embedded, 3)


def test_run_file_moved_meanwhile_is_not_created_and_recorded_later(embedded: Shell) -> None:
    """A disk may be unmounted and mounted again."""
    file = Path(str(make_url(embedded.database.url).database))
    script = "touch begun; while [ ! -e enough ]; do sleep 0.02; done"
    process = embedded.begin("--heartbeat", "50ms", "--", "sh", "-c", script)
    wait_for((embedded.folder / "begun").exists)
    embedded.database.engine.dispose()
    moved = embedded.folder / "moved.db"
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            file.with_name(file.name + suffix).rename(moved.with_name(moved.name + suffix))
    (embedded.folder / "enough").touch()
    time.sleep(1)
    assert not file.exists()
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            moved.with_name(moved.name + suffix).rename(file.with_name(file.name + suffix))
    code, _, err = embedded.end(process)
    assert (code, "Recorded now" in err) == (0, True)
    assert embedded.is_("completed")


def test_run_not_recorded_names_the_command_that_records_it(embedded: Shell) -> None:
    file = Path(str(make_url(embedded.database.url).database))
    script = "touch begun; while [ ! -e enough ]; do sleep 0.02; done; echo why; exit 3"
    options = ("--record-for", "300ms", "--heartbeat", "1h", "--url", embedded.database.url)
    process = embedded.begin(*options, "--", "sh", "-c", script, url="sqlite:///other.db")
    wait_for((embedded.folder / "begun").exists)
    embedded.database.engine.dispose()
    moved = file.rename(embedded.folder / "moved.db")
    (embedded.folder / "enough").touch()
    code, _, err = embedded.end(process)
    why = "Exited with status 3. Not recorded because: unable to open database file. "
    assert (code, why in err.splitlines()[-1]) == (69, True)
    warning = "a sweep, or a call with --stalled-after, takes it for stalled and repeats it. "
    message, _, command = err.rpartition("When the database is back: execution-core ")
    assert message.endswith(warning)
    moved.rename(file)
    assert main(shlex.split(command)) == 0
    assert embedded.attempts() == [("failed", None)]
    error = embedded.execution.error
    assert error is not None
    assert error.message == "Exited with status 3: why"


def test_run_success_after_loss_is_not_repeated(embedded: Shell) -> None:
    """A successful command is not repeated, although its record came too late."""
    script = "echo ran >> ran; while [ ! -e enough ]; do sleep 0.02; done"
    process = embedded.begin("--heartbeat", "1h", "--max-attempts", "2", "--", "sh", "-c", script)
    wait_for((embedded.folder / "ran").exists)
    embedded.manager.timeout(embedded.execution.id)
    (embedded.folder / "enough").touch()
    code, _, err = embedded.end(process)
    assert (code, "ATTEMPT_LOST" in err) == (1, True)
    assert (embedded.folder / "ran").read_text() == "ran\n"
    assert embedded.is_("timed_out")


OUTCOMES = {
    "completed": exit_codes.after_exit(0, "output"),
    "failed": exit_codes.after_exit(3, "output"),
    "killed": exit_codes.after_exit(-9, "output"),
    "timed_out": exit_codes.after_timeout("output"),
    "interrupted": exit_codes.after_interrupt(signal.SIGINT),
}


@pytest.mark.parametrize("name", OUTCOMES)
@pytest.mark.parametrize("max_attempts", [1, 2])
def test_outcome_recorded_twice_changes_nothing(shell: Shell, name: str, max_attempts: int) -> None:
    started = shell.manager.start(shell.manager.create("job", max_attempts=max_attempts).id)
    recorded = OUTCOMES[name].record(shell.manager, started, timedelta(0))
    assert OUTCOMES[name].record(shell.manager, started, timedelta(0)) == recorded
    for other in OUTCOMES.values():
        if other.status is not OUTCOMES[name].status:
            with pytest.raises(AttemptLost):
                other.record(shell.manager, started, timedelta(0))
    assert shell.execution == recorded


# An unavailable database


@dataclass(frozen=True)
class Access:
    """Access to a database that the test can block and unblock."""

    url: str
    block: Callable[[], object]
    unblock: Callable[[], object]


@contextmanager
def open_access(database: Database) -> Iterator[Access]:
    if database.name == "sqlite":
        path = make_url(database.url).database or ""
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            yield Access(
                database.url,
                lambda: writer.execute("BEGIN IMMEDIATE"),
                lambda: writer.execute("ROLLBACK"),
            )
        return
    role = f"blocked_{os.getpid()}"
    end_sessions = (
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
    )
    engine = create_engine(database.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as admin:

        def run(*statements: str) -> None:
            for statement in statements:
                admin.execute(text(statement))

        run(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'blocked'")
        url = make_url(database.url).set(username=role, password="blocked")
        try:
            yield Access(
                url.render_as_string(hide_password=False),
                lambda: run(f"ALTER ROLE {role} NOLOGIN", end_sessions),
                lambda: run(f"ALTER ROLE {role} LOGIN"),
            )
        finally:
            run(end_sessions, f"DROP ROLE {role}")


WAITING = "touch begun; while [ ! -e enough ]; do sleep 0.02; done; echo done"


@pytest.mark.slow
def test_run_database_unavailable_records_later(shell: Shell) -> None:
    errors = shell.folder / "errors"
    with open_access(shell.database) as database, errors.open("wb") as file:
        process = shell.begin(
            "--heartbeat", "50ms", "--", "sh", "-c", WAITING, url=database.url, stderr=file
        )
        wait_for((shell.folder / "begun").exists)
        database.block()
        if shell.database.name == "postgresql":  # on SQLite, busy_timeout delays the message
            wait_for(lambda: "Heartbeat not recorded" in errors.read_text())
        (shell.folder / "enough").touch()
        assert process.stdout
        assert process.stdout.read(5) == b"done\n"
        if shell.database.name == "postgresql":
            wait_for(lambda: "Not recorded yet" in errors.read_text())
        database.unblock()
        assert shell.end(process)[0] == 0
    assert errors.read_text().count("Heartbeat not recorded") <= 1
    assert shell.attempts() == [("completed", None)]


@pytest.mark.slow
def test_run_database_stays_unavailable_exits_69(shell: Shell) -> None:
    with open_access(shell.database) as database:
        process = shell.begin("--record-for", "1s", "--", "sh", "-c", WAITING, url=database.url)
        wait_for((shell.folder / "begun").exists)
        database.block()
        (shell.folder / "enough").touch()
        code, out, err = shell.end(process)
        database.unblock()
    assert (code, out) == (69, b"done\n")
    assert "NOT RECORDED: Attempt 1 of 1" in err
    assert "Exited with status 0" in err
    assert ("process holds the write lock" in err) == (shell.database.name == "sqlite")
    assert shell.is_("running")


@pytest.mark.exhaustive
def test_run_database_file_removed_exits_69(embedded: Shell) -> None:
    """SQLite only: a server does not remove a database in use."""
    embedded.database.engine.dispose()
    code, out, err = embedded.run("--record-for", "100ms", "--", "sh", "-c", "rm *.db*; echo done")
    assert (code, out) == (69, b"done\n")
    assert "NOT RECORDED" in err


def test_run_signal_while_the_outcome_is_recorded_ends_it(shell: Shell) -> None:
    with open_access(shell.database) as database:
        process = shell.begin("--record-for", "1h", "--", "sh", "-c", WAITING, url=database.url)
        wait_for((shell.folder / "begun").exists)
        database.block()
        (shell.folder / "enough").touch()
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        time.sleep(0.5)  # until it tries to record
        process.terminate()
        code, _, err = shell.end(process)
        database.unblock()
    assert code == 69
    assert "NOT RECORDED: Attempt 1 of 1" in err


# Output of the command


RunScript = Callable[[str], tuple[int | None, str, bytes]]


@pytest.fixture
def run_script(capfdbinary: pytest.CaptureFixture[bytes]) -> RunScript:
    """Return a function that runs a script and returns its status, tail and forwarded output."""

    def run(script: str) -> tuple[int | None, str, bytes]:
        events = EventQueue()
        child = ChildProcess(["sh", "-c", script], os.environ, None, events.post)
        limit = time.monotonic() + PATIENCE
        assert {events.next(limit), events.next(limit)} == {child, child.output}
        assert len(child.output._tail) <= TAIL_BYTES + 1
        child.end_watch()
        out, err = capfdbinary.readouterr()
        return child.status, child.output.tail(), out + err

    return run


def test_run_many_carriage_returns_take_little_time(run_script: RunScript) -> None:
    began = time.monotonic()
    status, tail, out = run_script("head -c 2000000 /dev/zero | tr '\\0' '\\r'; echo; echo end")
    assert (status, tail[-4:], len(out)) == (0, "end\n", 2_000_005)
    assert time.monotonic() - began < 5


def test_child_process_long_line_keeps_tail(run_script: RunScript) -> None:
    status, tail, out = run_script("head -c 50000000 /dev/zero | tr '\\0' x")
    assert (status, tail) == (0, "x" * TAIL_BYTES)
    assert out == b"x" * 50_000_000


def test_child_process_many_lines_keeps_last_ones(run_script: RunScript) -> None:
    _, tail, out = run_script("seq 1 1000")
    assert tail.split() == out.decode().split()[-TAIL_LINES:]


def test_child_process_tail_starts_with_whole_character(run_script: RunScript) -> None:
    _, tail, _ = run_script("yes é | head -n 5000 | tr -d '\\n'; printf x")
    assert tail == "é" * (TAIL_BYTES // 2 - 1) + "x"


def test_child_process_closed_output_keeps_exit_status(run_script: RunScript) -> None:
    assert run_script("echo before; exec >&- 2>&-; sleep 0.2; exit 4") == (
        4,
        "before\n",
        b"before\n",
    )


def test_child_process_background_child_keeps_running(
    run_script: RunScript, tmp_path: Path
) -> None:
    status, tail, out = run_script(f"sleep 600 & echo $! > {tmp_path}/pid; echo done; exit 3")
    pid = int((tmp_path / "pid").read_text())
    left = not is_gone(pid)
    os.kill(pid, signal.SIGKILL)
    assert (status, tail, out, left) == (3, "done\n", b"done\n", True)


def test_child_process_output_of_background_child_is_discarded(
    run_script: RunScript, tmp_path: Path
) -> None:
    """A write into a pipe without a reader would end it by SIGPIPE."""
    script = f"(sleep 2; echo more; echo alive > {tmp_path}/alive) & echo done; exit 3"
    status, _, out = run_script(script)
    assert (status, out) == (3, b"done\n")
    wait_for((tmp_path / "alive").exists)


def test_child_process_tail_is_what_a_terminal_shows(run_script: RunScript) -> None:
    bar = "for i in $(seq 3000); do printf '\\r%d %%' $i; done"
    _, tail, out = run_script(f"echo ERROR: disk failed; {bar}; printf '\\r\\ndone\\r\\n'")
    assert tail == "ERROR: disk failed\n3000 %\r\ndone\r\n"
    assert out.count(b"\r") == 3002


# Output that cannot be written


def test_run_full_disk_is_not_completed(embedded: Shell) -> None:
    """The command gets SIGPIPE, or has exited with 0 already."""
    with Path("/dev/full").open("wb") as full:
        code, _, err = embedded.run("--", "echo", "hello", stdout=full)
        assert (code, embedded.execution.status) == (74, "failed")
        assert embedded.execution.error is not None
        assert embedded.execution.error.code == "output_lost"
        assert "output could not be written: No space left on device" in err
        code, _, _ = embedded.run("--", "yes", stdout=full)
    assert code == 128 + signal.SIGPIPE
    newest = embedded.manager.list()[0]
    assert newest.error is not None
    assert "after its output could not be written: No space left" in newest.error.message


def test_run_reader_that_has_enough_ends_the_command(embedded: Shell) -> None:
    process = embedded.begin("--", "yes")
    assert process.stdout is not None
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
    process = embedded.begin("--", "sh", "-c", "seq 100000; exit 0")
    assert process.stdout is not None
    process.stdout.close()
    process.wait(PATIENCE)


# The end of `run` is the end of its command

STUBBORN = "trap '' TERM HUP INT; echo $$ >> pids; while :; do sleep 0.1; done"


def test_run_killed_kills_the_group_within_two_seconds(embedded: Shell) -> None:
    process = embedded.begin("--", "sh", "-c", FAMILY)
    wait_for(lambda: len(embedded.pids()) == 3)
    process.kill()
    killed_at = time.monotonic()
    wait_for(lambda: all(map(is_gone, embedded.pids())))
    assert time.monotonic() - killed_at < 2


def watchdogs(process: "subprocess.Popen[bytes]") -> list[Path]:
    """Return the folders in /proc of the watchdogs of a run."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    folders = [Path("/proc", pid) for pid in children]
    return [each for each in folders if b"execution-core-watchdog" in read(each / "cmdline")]


def read(file: Path) -> bytes:
    with suppress(OSError):  # the process has ended
        return file.read_bytes()
    return b""


def test_run_watchdog_killed_is_replaced_by_one_that_kills_the_group(
    embedded: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(embedded.folder))
    process = embedded.begin("--", "sh", "-c", FAMILY)
    wait_for(lambda: len(embedded.pids()) == 3)
    for _ in range(2):
        (watchdog,) = watchdogs(process)
        os.kill(int(watchdog.name), signal.SIGKILL)
        wait_for(lambda: [each for each in watchdogs(process) if each != watchdog])  # noqa: B023
    time.sleep(0.2)  # until it knows the group
    assert list(embedded.folder.glob("execution-core-run-*"))
    process.kill()
    assert process.stderr is not None
    assert process.stderr.read().count(b"The watchdog of the command was killed") == 1
    assert_group_ended(embedded, 3)
    wait_for(lambda: not list(embedded.folder.glob("execution-core-run-*")))


def test_run_watchdog_has_a_name_and_no_environment(embedded: Shell) -> None:
    process = embedded.begin("--", "sh", "-c", WAITING)
    wait_for((embedded.folder / "begun").exists)
    (watchdog,) = watchdogs(process)
    variables = read(watchdog / "environ").rstrip(b"\0").split(b"\0")
    assert {each.partition(b"=")[0] for each in variables} == {b"PATH"}
    (embedded.folder / "enough").touch()
    assert embedded.end(process)[0] == 0


KILLED_AT_ONCE = """
import os, signal, subprocess
from execution_core.cli.run.child_process import ChildProcess

class KilledAtOnce(subprocess.Popen):
    def __init__(self, command, **options):
        super().__init__(command, **options)
        if command[0] == "sleep":
            print(self.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

subprocess.Popen = KilledAtOnce
ChildProcess(["sleep", "600"], os.environ, None, print)
"""


def test_run_killed_as_it_starts_the_command_kills_the_command() -> None:
    """The child announces its group before it becomes the command: it is always watched."""
    program = [sys.executable, "-c", KILLED_AT_ONCE]
    ended = subprocess.run(program, stdout=subprocess.PIPE, check=False, timeout=PATIENCE)
    assert ended.returncode == -signal.SIGKILL
    wait_for(lambda: is_gone(int(ended.stdout)))


def test_run_killed_ends_a_run_inside_it(embedded: Shell) -> None:
    inner = [str(PROGRAM), "run", "--type", "inner", "--", "sh", "-c", STUBBORN]
    process = embedded.begin("--type", "outer", "--", *inner)
    wait_for(lambda: len(embedded.pids()) == 1)
    process.kill()
    killed_at = time.monotonic()
    wait_for(lambda: all(map(is_gone, embedded.pids())))
    assert time.monotonic() - killed_at < 2


@pytest.mark.exhaustive
def test_run_inside_a_run_ends_first_and_is_its_child(embedded: Shell) -> None:
    """Both have the same --kill-after; the inner one still records how its command ended."""
    options = ["--kill-after", "5s"]
    inner = [str(PROGRAM), "run", *options, "--type", "inner", "--", "sh", "-c", STUBBORN]
    process = embedded.begin(*options, "--timeout", "3s", "--type", "outer", "--", *inner)
    code, _, _ = embedded.end(process)
    assert code == 124
    assert all(map(is_gone, embedded.pids()))
    (outer,) = embedded.manager.list(type="outer")
    (found,) = embedded.manager.list(type="inner")
    assert (outer.status, found.status, found.parent_id) == ("timed_out", "failed", outer.id)
    assert found.error is not None
    assert found.error.code == "interrupted"


def test_run_inside_a_deleted_execution_has_no_parent(
    embedded: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXECUTION_ID", "0198a000-0000-7000-8000-000000000001")
    assert embedded.run("--", "true")[0] == 0
    assert embedded.execution.parent_id is None


def test_run_after_normal_end_leaves_background_children(embedded: Shell) -> None:
    assert embedded.run("--", "sh", "-c", "sleep 600 & echo $! >> pids")[0] == 0
    time.sleep(1)
    assert not any(map(is_gone, embedded.pids()))


def test_run_user_signals_are_forwarded(embedded: Shell) -> None:
    script = "trap 'echo got' USR1; touch begun; until [ -e enough ]; do sleep 0.05; done; true"
    process = embedded.begin("--", "sh", "-c", script)
    wait_for((embedded.folder / "begun").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert process.stdout.readline() == b"got\n"
    (embedded.folder / "enough").touch()
    assert process.wait(PATIENCE) == 0
    assert embedded.is_("completed")


def test_run_masks_passwords_of_urls_in_what_it_records(embedded: Shell) -> None:
    script = "echo postgresql://app:s3cr3t@host/db; exit 3"
    code, out, _ = embedded.run("--", "sh", "-c", script)
    assert (code, b"s3cr3t" in out) == (3, True)
    assert "s3cr3t" not in embedded.execution.model_dump_json(exclude={"payload"})


@pytest.mark.exhaustive
def test_run_late_output_is_captured(embedded: Shell) -> None:
    script = "(sleep 0.2; echo late) & echo early"
    assert embedded.run("--", "sh", "-c", script)[:2] == (0, b"early\nlate\n")
    assert embedded.execution.result["output"] == "early\nlate\n"


def test_run_output_not_read_is_recorded(embedded: Shell) -> None:
    """The outcome is recorded, and a late reader gets all the output."""
    process = embedded.begin("--", "sh", "-c", "head -c 100000 /dev/zero; echo done")
    wait_for(lambda: embedded.is_("completed"))
    assert process.poll() is None
    code, out, _ = embedded.end(process)
    assert (code, out) == (0, b"\0" * 100_000 + b"done\n")


def test_run_closed_standard_streams_are_safe(embedded: Shell) -> None:
    """Output must not go to the file or the socket of the database."""
    closed = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-', str(PROGRAM)]
    code, _, _ = embedded.run("--", "sh", "-c", "echo a; echo b >&2", program=closed)
    assert code == 0
    assert embedded.execution.result["output"] == "a\nb\n"


# Arguments


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["--"], ["--key", "k"], ["--timeout", "30", "--", "x"], ["--nonsense", "x"]),
        ["--heartbeat", "20s", "--stalled-after", "39s", "--", "x"],
    ],
)
def test_run_usage_error_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *arguments]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--key", "x" * 300), "idempotency_key must have at most 255 characters"),
        (("--heartbeat", "0s"), "heartbeat must be more than 0"),
    ],
)
def test_run_invalid_value_refused(
    embedded: Shell, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = embedded.run(*arguments, "--", "echo", "ran")
    assert (code, out) == (1, b"")
    assert f"INVALID_VALUE: {message}" in err
    assert embedded.manager.list() == []


def test_run_key_of_other_command_refused(embedded: Shell) -> None:
    recorded = {"command": ["echo", "http://a:s3cret@b", "x" * 300]}
    created = embedded.manager.create("echo", recorded, idempotency_key="k")
    code, out, err = embedded.run("--key", "k", "--", "echo", "ran")
    assert (code, out) == (1, b"")
    assert "IDEMPOTENCY_CONFLICT" in err
    assert "has another command (echo http://a:***@b xxx" in err
    assert "xx…): the command was not run" in err
    assert embedded.execution == created


@pytest.mark.exhaustive
def test_run_cancelled_earlier_refused(embedded: Shell) -> None:
    payload = {"command": ["echo", "ran"]}
    embedded.manager.cancel(embedded.manager.create("echo", payload, idempotency_key="k").id)
    code, out, err = embedded.run("--key", "k", "--", "echo", "ran")
    assert (code, out) == (1, b"")
    assert "was cancelled at" in err
    assert err.endswith("To run it again: add --again, once, in a shell\n")


def test_run_options_of_command_are_passed(embedded: Shell) -> None:
    words = ("--timeout", "x", "--", "\udcff")
    code, out, _ = embedded.run("sh", "-c", 'printf "%s " "$@"', "sh", *words)
    assert (code, out) == (0, b"--timeout x -- \xff ")
    assert embedded.execution.payload["command"][-1] == "\ufffd"


@pytest.mark.exhaustive
def test_run_relative_database_url_is_made_absolute(embedded: Shell) -> None:
    script = "cd /; execution-core progress 1 2"
    code, _, err = embedded.run("--", "sh", "-c", script, url="sqlite:///executions.db")
    assert (code, err) == (0, "")
    assert embedded.execution.progress is not None
