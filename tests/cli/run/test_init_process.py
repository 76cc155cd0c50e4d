"""`execution-core run` as the first process of a container, here of a PID namespace."""

import functools
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .shell import PROGRAM, Shell, wait_for

# --kill-child ends the namespace with `unshare`, when the test ends.
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
CONTAINER: list[Any] = [*UNSHARE, PROGRAM]


@functools.cache
def may_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def _permitted() -> None:
    if not may_unshare():
        pytest.skip("this user may not create a PID namespace")


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def first_process(unshare: "subprocess.Popen[bytes]") -> int:
    """Return the number of the first process, outside the namespace."""
    (child,) = children_of(unshare.pid)
    return int(child)


def send(unshare: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    subprocess.run(["kill", f"-{number.value}", f"{first_process(unshare)}"], check=True)


def test_init_reaps_orphans(embedded: Shell) -> None:
    script = (
        "for each in 1 2 3; do (sh -c 'echo $$ >> orphans; sleep 0.1' &); done\n"
        "while [ $(wc -l < orphans) -lt 3 ]; do sleep 0.02; done; sleep 0.3\n"
        "for each in $(cat orphans); do [ -e /proc/$each ] && echo left; done; echo $PPID"
    )
    (embedded.folder / "orphans").touch()
    code, out, err = embedded.run("--", "sh", "-c", script, program=CONTAINER)
    assert (code, err) == (0, "")
    (parent,) = out.split()  # none was left
    assert int(parent) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -9 $PPID", 137)]
)
def test_init_exit_code_is_that_of_run(embedded: Shell, script: str, code: int) -> None:
    """Also if the process that does the work is killed."""
    assert embedded.run("--", "sh", "-c", script, program=CONTAINER)[0] == code
    if script != "kill -9 $PPID":
        assert embedded.execution.status == ("failed" if code else "completed")


def test_init_sigterm_ends_the_command_and_all_output_arrives(embedded: Shell) -> None:
    script = "trap 'seq 50000; exit 0' TERM; touch begun; while :; do sleep 0.02; done"
    process = embedded.begin("--", "sh", "-c", script, program=CONTAINER)
    wait_for((embedded.folder / "begun").exists)
    send(process, signal.SIGTERM)
    code, out, err = embedded.end(process)
    assert (code, out) == (143, b"".join(b"%d\n" % each for each in range(1, 50_001)))
    assert err.count("Interrupted by SIGTERM") == 1
    assert embedded.attempts() == [("failed", "interrupted")]


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_init_termination_signals_arrive(embedded: Shell, number: signal.Signals) -> None:
    script = "touch begun; exec sleep 600"
    process = embedded.begin("--kill-after", "1s", "--", "sh", "-c", script, program=CONTAINER)
    wait_for((embedded.folder / "begun").exists)
    send(process, number)
    assert embedded.end(process)[0] == 128 + number
    assert embedded.attempts() == [("failed", "interrupted")]


def test_init_user_signals_are_forwarded(embedded: Shell) -> None:
    script = (
        "trap 'echo one' USR1; trap 'echo two; exit 5' USR2; touch begun;"
        " while :; do sleep 0.02; done"
    )
    process = embedded.begin("--", "sh", "-c", script, program=CONTAINER)
    wait_for((embedded.folder / "begun").exists)
    assert process.stdout is not None
    send(process, signal.SIGUSR1)
    assert process.stdout.readline() == b"one\n"
    send(process, signal.SIGUSR2)
    assert embedded.end(process)[:2] == (5, b"two\n")


@pytest.mark.exhaustive
def test_init_input_is_given_to_each_attempt(embedded: Shell) -> None:
    with subprocess.Popen(["echo", "input"], stdout=subprocess.PIPE) as writer:
        script = "cat; [ $EXECUTION_ATTEMPT = 2 ]"
        code, out, _ = embedded.run(
            *("--max-attempts", "2", "--", "sh", "-c", script),
            program=CONTAINER,
            stdin=writer.stdout,
        )
    assert (code, out) == (0, b"input\n" * 2)


def test_init_signal_before_the_command_begins_is_not_lost(embedded: Shell) -> None:
    """The kernel drops signals for the first process while it has no handler."""
    process = embedded.begin("--", "sleep", "60", program=CONTAINER)
    # The first child exists as soon as the handlers do.
    wait_for(lambda: children_of(first_process(process)) if children_of(process.pid) else [])
    send(process, signal.SIGTERM)
    assert embedded.end(process)[0] == 143
    assert embedded.manager.list() == [] or embedded.is_("failed")
