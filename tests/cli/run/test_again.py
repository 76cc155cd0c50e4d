"""Another attempt by `run --id` and `run --key --again`, and the messages that advise it."""

import os
import shlex
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from execution_core import Execution
from execution_core.cli import main

from .shell import PROGRAM, Shell, wait_for

FAILS = ("--key", "k", "--", "sh", "-c", "echo ran >> ran; [ -e good ]")
WAITS = (
    "--key",
    "k",
    "--",
    "sh",
    "-c",
    "echo ran >> ran; while [ ! -e good ]; do sleep 0.02; done",
)


def runs(shell: Shell) -> int:
    """Return how often the command ran."""
    file = shell.folder / "ran"
    return len(file.read_text().splitlines()) if file.exists() else 0


def executions(shell: Shell) -> list[Execution]:
    return sorted(shell.manager.list(), key=lambda each: each.id)


def advised(shell: Shell, message: str) -> str:
    """Run the command that a message advises, and return what it prints."""
    advice = message.partition("To run it again: ")[2].partition(", and then")[0]
    words = [str(PROGRAM), *shlex.split(advice)[1:]]
    environment = os.environ | {"EXECUTION_CORE_URL": shell.database.url}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return ended.stdout


# --id


@pytest.mark.slow
def test_run_id_of_created_execution_runs_its_command(shell: Shell) -> None:
    payload = {"command": ["sh", "-c", "echo $EXECUTION_ID; exit $1", "sh", "0"]}
    created = shell.manager.create("job", payload)
    code, out, err = shell.run("--id", created.id[:13])
    assert (code, out.decode(), err) == (0, f"{created.id}\n", "")
    assert (shell.execution.id, shell.execution.status) == (created.id, "completed")


def test_run_id_with_command_runs_that_and_keeps_options(embedded: Shell) -> None:
    created = embedded.manager.create("job", {"any": 1}, max_attempts=2)
    script = "echo try; [ $EXECUTION_ATTEMPT = 2 ]"
    assert embedded.run("--id", created.id, "--", "sh", "-c", script)[:2] == (0, b"try\ntry\n")
    assert (embedded.execution.payload, embedded.execution.attempts) == ({"any": 1}, 2)


@pytest.mark.slow
def test_run_id_of_failed_execution_is_possible_as_its_message_says(shell: Shell) -> None:
    assert shell.run(*FAILS)[0] == 1
    id = shell.execution.id
    code, out, err = shell.run("--id", id)
    assert (code, out, runs(shell)) == (1, b"", 1)
    assert f"MAX_RETRIES_EXCEEDED: Execution {id} " in err
    advised(shell, err)
    (shell.folder / "good").touch()
    assert shell.run("--id", id)[0] == 0
    assert (runs(shell), shell.execution.attempts) == (2, 2)


@pytest.mark.slow
def test_run_id_of_completed_execution_is_possible_as_its_message_says(shell: Shell) -> None:
    (shell.folder / "good").touch()
    shell.run(*FAILS)
    given = ("--url", shell.database.url)
    code, _, err = shell.run("--id", shell.execution.id, *given, url="sqlite:///other.db")
    assert (code, "was completed at" in err) == (0, True)
    assert f", and then execution-core run --id NEW --url {shlex.quote(given[1])}: NEW is" in err
    printed = advised(shell, err)
    first, replay = executions(shell)
    assert printed.startswith(replay.id)
    assert shell.run("--id", replay.id)[0] == 0
    assert (replay.replay_of, runs(shell)) == (first.id, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (None, "names an execution without a command"),
        ({"command": []}, "names an execution without a command"),
        ({"command": "true"}, "names an execution without a command"),
        ({"command": ["echo", "\ufffd"]}, "names a command with bytes that are not UTF-8"),
    ],
)
def test_run_id_without_exact_command_refused(
    embedded: Shell, payload: object, message: str
) -> None:
    created = embedded.manager.create("job", payload)
    code, out, err = embedded.run("--id", created.id)
    assert (code, out) == (1, b"")
    assert f"INVALID_VALUE: id {message}: {created.id}. Give it after --" in err
    assert embedded.execution == created


@pytest.mark.exhaustive
def test_run_id_of_missing_execution_exits_3(embedded: Shell) -> None:
    code, _, err = embedded.run("--id", "0198a000-0000-7000-8000-000000000001")
    assert (code, "NOT_FOUND" in err) == (3, True)


@pytest.mark.exhaustive
def test_run_id_without_extra_options_takes_over_stalled(embedded: Shell) -> None:
    created = embedded.manager.create("job", {"command": ["true"]}, max_attempts=2)
    embedded.manager.start(created.id, worker="dead")
    assert embedded.run("--id", created.id)[0] == 75
    options = ("--heartbeat", "100ms", "--stalled-after", "200ms")
    wait_for(lambda: embedded.run("--id", created.id, *options)[0] == 0)
    assert embedded.attempts() == [("timed_out", "stalled"), ("completed", None)]


# --again


@pytest.mark.slow
def test_run_again_after_last_attempt_adds_one(shell: Shell) -> None:
    shell.run(*FAILS)
    code, _, err = shell.run(*FAILS)
    assert (code, runs(shell)) == (1, 1)
    assert err.endswith("To run it again: add --again, once, in a shell\n")
    assert shell.run("--again", *FAILS)[0] == 1
    (shell.folder / "good").touch()
    assert shell.run("--again", *FAILS)[0] == 0
    assert (runs(shell), shell.execution.attempts, shell.execution.max_attempts) == (3, 3, 3)
    (allowed,) = {
        row["actor"]
        for row in shell.database.rows(
            "SELECT actor FROM execution_history WHERE from_status = 'failed'"
        )
    }
    assert allowed


@pytest.mark.slow
@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_run_again_of_finished_execution_is_a_replay(shell: Shell, status: str) -> None:
    (shell.folder / "good").touch()
    if status == "cancelled":
        payload = {"command": list(FAILS[-3:])}
        shell.manager.cancel(shell.manager.create("sh", payload, idempotency_key="k").id)
    else:
        shell.run(*FAILS)
    before = runs(shell)
    assert shell.run("--again", *FAILS)[0] == 0
    assert shell.run("--again", *FAILS)[0] == 0
    first, second, third = executions(shell)
    assert runs(shell) == before + 2
    assert first.status == status
    assert {second.replay_of, third.replay_of} == {first.id}
    assert (second.status, third.status) == ("completed", "completed")


@pytest.mark.exhaustive
def test_run_again_continues_a_replay_that_is_not_finished(embedded: Shell) -> None:
    (embedded.folder / "good").touch()
    embedded.run("--max-attempts", "2", *WAITS)
    (embedded.folder / "good").unlink()
    process = embedded.begin("--again", "--max-attempts", "2", *WAITS)
    wait_for(lambda: runs(embedded) == 2)
    process.terminate()
    assert embedded.end(process)[0] == 143
    (embedded.folder / "good").touch()
    assert embedded.run("--again", "--max-attempts", "2", *WAITS)[0] == 0
    _, replay = executions(embedded)
    assert (replay.status, replay.attempts) == ("completed", 2)


@pytest.mark.exhaustive
def test_run_again_with_attempts_left_adds_none(embedded: Shell) -> None:
    (embedded.folder / "good").touch()
    assert embedded.run("--again", "--max-attempts", "2", *FAILS)[0] == 0
    assert (embedded.execution.attempts, embedded.execution.max_attempts) == (1, 2)


@pytest.mark.exhaustive
def test_run_again_while_running_exits_75(embedded: Shell) -> None:
    process = embedded.begin(*WAITS)
    wait_for(lambda: runs(embedded) == 1)
    code, _, err = embedded.run("--again", *WAITS)
    assert (code, "ALREADY_RUNNING" in err) == (75, True)
    (embedded.folder / "good").touch()
    assert embedded.end(process)[0] == 0
    assert (runs(embedded), len(embedded.manager.list())) == (1, 1)


def test_run_again_takes_over_a_stalled_replay(embedded: Shell) -> None:
    (embedded.folder / "good").touch()
    embedded.run(*WAITS)
    (embedded.folder / "good").unlink()
    process = embedded.begin("--again", *WAITS)
    wait_for(lambda: runs(embedded) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (embedded.folder / "good").touch()
    assert embedded.run("--again", *WAITS)[0] == 75
    options = ("--heartbeat", "100ms", "--stalled-after", "300ms")
    wait_for(lambda: embedded.run("--again", *options, *WAITS)[0] == 0)
    assert (runs(embedded), len(embedded.manager.list())) == (3, 2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("status", ["completed", "failed"])
def test_run_again_by_concurrent_callers_runs_once(shell: Shell, status: str) -> None:
    (shell.folder / "good").touch()
    if status == "completed":
        shell.run(*WAITS)
    else:
        payload = {"command": list(WAITS[-3:])}
        created = shell.manager.create("sh", payload, idempotency_key="k")
        shell.manager.fail(shell.manager.start(created.id).id, "no")
    before = runs(shell)
    (shell.folder / "good").unlink()
    processes = [shell.begin("--again", *WAITS) for _ in range(4)]
    wait_for(lambda: sum(each.poll() is not None for each in processes) == 3)
    (shell.folder / "good").touch()
    assert sorted(shell.end(each)[0] for each in processes) == [0, 75, 75, 75]
    assert (runs(shell) - before, len(shell.manager.list())) == (
        1,
        2 if status == "completed" else 1,
    )


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_request_again_by_concurrent_callers_finds_one_execution(shell: Shell, status: str) -> None:
    from execution_core.cli.database import open_database
    from execution_core.cli.run.request import Request

    with open_database(shell.database.url, None) as database:
        manager = database.manager
        new: dict[str, Any] = {"type": "job", "payload": None, "idempotency_key": "k"}
        end = manager.complete if status == "completed" else partial(manager.fail, error="no")
        end(manager.start(manager.create(**new).id).id)
        request = Request(id=None, new_execution=new, again=True, stalled_after=None, actor="me")
        with ThreadPoolExecutor(8) as pool:
            for round in range(1, 6):
                found = list(pool.map(lambda _: request.find(database), range(8)))
                assert len({each.id for each in found}) == 1
                assert {(each.status, each.max_attempts) for each in found} == (
                    {("pending", 1)} if status == "completed" else {("retrying", round + 1)}
                )
                end(manager.start(found[0].id).id)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--again", "--", "x"], "--again needs --key"),
        (["--again", "--id", "1"], "--again needs --key"),
        (["--id", "1", "--key", "k"], "--key cannot be given with --id"),
        (["--id", "1", "--type", "t", "--", "x"], "--type cannot be given with --id"),
        (["--id", "1", "--max-attempts", "2"], "--max-attempts cannot be given with --id"),
        (["--id", "1", "--timeout", "2s"], "--timeout cannot be given with --id"),
        (["--id", "", "--"], "no COMMAND given"),
        (["--key", "k", "--again"], "no COMMAND given"),
    ],
)
def test_run_contradictory_options_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_run_id_with_other_command_says_so_in_the_log(embedded: Shell) -> None:
    embedded.run("--", "false")
    id = embedded.execution.id
    embedded.manager.retry(id, extra_attempts=1)
    assert embedded.run("--id", id, "--", "echo", "else")[0] == 0
    (said,) = (entry for entry in embedded.manager.logs(id) if entry.attempt == 2)
    assert said.message == "Attempt 2 runs another command than the payload"
    assert said.data == {"command": ["echo", "else"]}


@pytest.mark.slow
def test_run_cancelled_during_backoff_is_noticed(embedded: Shell) -> None:
    options = ("--max-attempts", "2", "--backoff", "1h", "--heartbeat", "50ms")
    process = embedded.begin(*options, "--", "false")
    wait_for(lambda: embedded.is_("retrying"))
    embedded.manager.cancel(embedded.execution.id)
    code, _, err = embedded.end(process)
    assert (code, "was cancelled at" in err) == (1, True)


@pytest.mark.slow
def test_run_retried_during_backoff_continues_at_once(embedded: Shell) -> None:
    options = ("--max-attempts", "2", "--backoff", "1h", "--heartbeat", "50ms")
    process = embedded.begin(*options, "--", "sh", "-c", "[ $EXECUTION_ATTEMPT = 2 ]")
    wait_for(lambda: embedded.is_("retrying"))
    embedded.manager.retry(embedded.execution.id)
    assert embedded.end(process)[0] == 0
    assert embedded.is_("completed")


def test_run_ended_by_operator_is_refused(embedded: Shell) -> None:
    for verb in ("fail $EXECUTION_ID broken", "complete $EXECUTION_ID"):
        script = f"execution-core {verb}; sleep 60"
        options = ("--max-attempts", "2", "--heartbeat", "50ms", "--type", verb[:4])
        code, _, err = embedded.run(*options, "--", "sh", "-c", script)
        assert (code, "ATTEMPT_LOST" in err) == (1, True)


def test_run_quiet_says_nothing_of_options_that_are_ignored(embedded: Shell) -> None:
    embedded.run("--key", "k", "--", "true")
    other = ("--key", "k", "--max-attempts", "3", "--", "true")
    assert embedded.run("--quiet", *other)[2] == ""
    assert "execution-core: Execution " in embedded.run(*other)[2]
