"""The standard input of the command of `execution-core run`."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from .shell import PROGRAM, Shell, wait_for

MEBIBYTE: Final = 1024**2
INPUT: Final = bytes(range(256)) + b"no newline at the end"
FAILS_TWICE: Final = ("--max-attempts", "3", "--", "sh", "-c", "cat; [ $EXECUTION_ATTEMPT = 3 ]")


def random_text(size: int) -> bytes:
    return os.urandom(size // 2 + 1).hex().encode()[:size]


def write_all(descriptor: int, data: bytes) -> None:
    with suppress(BrokenPipeError), os.fdopen(descriptor, "wb") as pipe:
        pipe.write(data)


@contextmanager
def written(data: bytes, kind: str = "pipe") -> Iterator[int]:
    """Yield a pipe or socket into which a thread writes data, then closes it."""
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (end.detach() for end in socket.socketpair())
    thread = threading.Thread(target=write_all, args=(writer, data))
    thread.start()
    try:
        yield reader
    finally:
        os.close(reader)
        thread.join()


@contextmanager
def open_pipe() -> Iterator[tuple[int, int]]:
    """Yield a pipe without data whose writer stays open."""
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def limited(size: int) -> list[Any]:
    """Return a program that keeps at most this many bytes of input."""
    code = (
        "import sys\nfrom execution_core.cli import main\n"
        "from execution_core.cli.run import standard_input\n"
        f"standard_input.MAX_SPOOL_BYTES = {size}\nsys.exit(main())"
    )
    return [sys.executable, "-c", code]


def in_shell(script: str) -> list[Any]:
    """Return a program that `sh` prepares with a script, such as `ulimit -f 1`."""
    return ["sh", "-c", f'{script}; exec "$0" "$@"', PROGRAM]


# Each attempt gets all of it


def test_input_file_is_rewound_to_its_first_offset(embedded: Shell) -> None:
    (embedded.folder / "input").write_bytes(b"already read\n" + INPUT)
    with (embedded.folder / "input").open("rb") as file:
        file.seek(len(b"already read\n"))
        os.lseek(file.fileno(), file.tell(), os.SEEK_SET)
        code, out, _ = embedded.run(*FAILS_TWICE, stdin=file)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == len(b"already read\n" + INPUT)
    assert (code, out) == (0, INPUT * 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_input_pipe_is_given_to_each_attempt(embedded: Shell, kind: str) -> None:
    with written(INPUT, kind) as reader:
        code, out, err = embedded.run(*FAILS_TWICE, stdin=reader)
    assert (code, out) == (0, INPUT * 3)
    assert err.count("\n") == 3  # two failures, and that it completed


def test_input_of_32_mib_is_identical_in_each_attempt(embedded: Shell) -> None:
    """The second attempt reads only a part of it; the third one gets the rest from the pipe."""
    data = os.urandom(MEBIBYTE) * 32
    script = (
        "[ $EXECUTION_ATTEMPT = 1 ] && head -c 5000000 | sha256sum && exit 1\n"
        "[ $EXECUTION_ATTEMPT = 2 ] && exit 2\n"
        "sha256sum; [ $EXECUTION_ATTEMPT = 4 ]"
    )
    with written(data) as reader:
        code, out, _ = embedded.run("--max-attempts", "4", "--", "sh", "-c", script, stdin=reader)
    whole, part = (hashlib.sha256(each).hexdigest() for each in (data, data[:5_000_000]))
    assert (code, [line[:64] for line in out.decode().splitlines()]) == (0, [part, whole, whole])


@pytest.mark.exhaustive
def test_input_after_timeout_is_given_again(embedded: Shell) -> None:
    script = "head -c 10; [ $EXECUTION_ATTEMPT = 2 ] || exec sleep 600; cat"
    options = ("--timeout", "500ms", "--kill-after", "100ms", "--max-attempts", "2")
    with written(INPUT) as reader:
        code, out, _ = embedded.run(*options, "--", "sh", "-c", script, stdin=reader)
    assert (code, out) == (0, INPUT[:10] + INPUT)


@pytest.mark.exhaustive
def test_input_background_child_of_an_attempt_takes_nothing(embedded: Shell) -> None:
    """A background child of the first attempt reads its own pipe, which then ends."""
    script = (
        "[ $EXECUTION_ATTEMPT = 2 ] && exec cat\n"
        "exec 3<&0; (cat <&3 > background; touch ended) & exit 1"
    )
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb"), os.fdopen(writer, "wb") as pipe:
        options = ("--max-attempts", "2", "--backoff", "500ms")
        process = embedded.begin(*options, "--", "sh", "-c", script, stdin=reader)
        wait_for((embedded.folder / "ended").exists)
        pipe.write(INPUT)
        pipe.close()
        code, out, _ = embedded.end(process)
    assert (code, out) == (0, INPUT)
    assert (embedded.folder / "background").read_bytes() == b""


@pytest.mark.exhaustive
def test_input_writer_killed_ends_the_input(embedded: Shell) -> None:
    with subprocess.Popen(["sh", "-c", "echo part; exec sleep 600"], stdout=-1) as writer:
        try:
            process = embedded.begin(*FAILS_TWICE, stdin=writer.stdout)
            assert process.stdout is not None
            assert process.stdout.readline() == b"part\n"
        finally:
            writer.kill()
        code, out, _ = embedded.end(process)
    assert (code, out) == (0, b"part\n" * 2)


# As it arrives


@pytest.mark.slow
@pytest.mark.parametrize("attempts", [1, 2])
def test_input_arrives_while_the_pipe_is_open(embedded: Shell, attempts: int) -> None:
    script = "while read line; do echo got $line; done; exit 3"
    with open_pipe() as (reader, writer):
        process = embedded.begin(
            "--max-attempts", f"{attempts}", "--", "sh", "-c", script, stdin=reader
        )
        assert process.stdout is not None
        for word in (b"one", b"two"):
            os.write(writer, word + b"\n")
            assert process.stdout.readline() == b"got " + word + b"\n"
        process.terminate()
        assert embedded.end(process)[0] == 143


@pytest.mark.slow
@pytest.mark.parametrize("attempts", ["1", "2"])
def test_input_silent_pipe_does_not_delay_a_command(embedded: Shell, attempts: str) -> None:
    with open_pipe() as (reader, _):
        code, _, _ = embedded.run("--max-attempts", attempts, "--", "sh", "-c", "exit 3",
            stdin=reader)  # fmt: skip
    assert code == 3
    assert embedded.attempts() == [("failed", "exit_3")] * int(attempts)


def test_input_endless_is_not_read_to_its_end(embedded: Shell) -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as writer:
        code, out, _ = embedded.run(
            "--max-attempts", "2", "--", "sh", "-c", "head -n 1; exit 3", stdin=writer.stdout
        )
        assert writer.stdout is not None
        writer.stdout.close()
        assert writer.wait() == -signal.SIGPIPE
    assert (code, out) == (3, b"y\ny\n")


@pytest.mark.exhaustive
def test_input_of_a_command_that_is_missing_is_left(embedded: Shell) -> None:
    with open_pipe() as (reader, _):
        code, _, _ = embedded.run("--max-attempts", "2", "--", "no-such-command", stdin=reader)
    assert code == 127


def test_input_of_the_only_attempt_is_passed_directly(embedded: Shell) -> None:
    with open_pipe() as (reader, _):
        script = "import os; print(os.fstat(0).st_ino)"
        code, out, _ = embedded.run("--", sys.executable, "-c", script, stdin=reader)
        assert (code, int(out)) == (0, os.fstat(reader).st_ino)


def test_input_terminal_is_replaced_by_null(embedded: Shell) -> None:
    terminal, slave = os.openpty()
    try:
        code, out, _ = embedded.run("--", "sh", "-c", "cat; [ -t 0 ] || echo none", stdin=slave)
    finally:
        os.close(terminal)
        os.close(slave)
    assert (code, out) == (0, b"none\n")


@pytest.mark.slow
@pytest.mark.parametrize("attempts", ["1", "2"])
def test_input_closed_is_empty(embedded: Shell, attempts: str) -> None:
    program = ["sh", "-c", 'exec "$0" "$@" <&-', PROGRAM]
    script = "cat && echo empty; exit 3"
    code, out, err = embedded.run(
        "--max-attempts", attempts, "--", "sh", "-c", script, program=program
    )
    assert (code, out) == (3, b"empty\n" * int(attempts))
    assert err.count("\n") == int(attempts)


# What cannot be kept


@pytest.mark.parametrize(("over", "runs"), [(0, 2), (1, 1)])
def test_input_above_limit_is_passed_on_but_not_again(
    embedded: Shell, over: int, runs: int
) -> None:
    data = random_text(MEBIBYTE + over)
    with written(data) as reader:
        code, out, err = embedded.run(
            *("--max-attempts", "2", "--", "sh", "-c", "cat; exit 3"),
            program=limited(MEBIBYTE),
            stdin=reader,
        )
    assert (code, out) == (3, data * runs)
    message = "No further attempt: standard input has more than 1 MiB; a file has no such limit"
    assert (message in err) == (runs == 1)
    assert embedded.is_("failed" if runs == 2 else "retrying")


@pytest.mark.exhaustive
def test_input_of_256_mib_is_given_again(embedded: Shell) -> None:
    size = 256 * MEBIBYTE
    for over, runs in ((0, 2), (1, 1)):
        command = f"head -c {size + over} /dev/zero"
        with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE) as writer:
            code, out, _ = embedded.run(
                "--max-attempts", "2", "--", "sh", "-c", "wc -c; exit 3", stdin=writer.stdout
            )
        assert (code, out) == (3, f"{size + over}\n".encode() * runs)


def test_input_without_room_to_keep_it_is_passed_on_once(embedded: Shell) -> None:
    """The size of files is limited, which is like a full disk."""
    data = random_text(4 * MEBIBYTE)
    with written(data) as reader:
        code, out, err = embedded.run(
            *("--max-attempts", "2", "--", "sh", "-c", "cat; exit 3"),
            program=in_shell("ulimit -f 4096"),
            stdin=reader,
        )
    assert (code, out) == (3, data)
    assert "No further attempt: standard input could not be kept: File too large" in err
    assert embedded.is_("retrying")


@pytest.mark.exhaustive
def test_input_full_temporary_directory_is_passed_on_once(
    embedded: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedded.folder / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    monkeypatch.setenv("TMPDIR", str(folder))
    data = random_text(MEBIBYTE)
    try:
        with written(data) as reader:
            command = ("--max-attempts", "2", "--", "sh", "-c", "cat; exit 3")
            code, out, err = embedded.run(*command, stdin=reader)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert (code, out) == (3, data)
    assert "standard input could not be kept: No space left on device" in err


@pytest.mark.exhaustive
def test_input_missing_temporary_directory_uses_another(
    embedded: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/no/such/directory")
    with written(INPUT) as reader:
        code, out, _ = embedded.run(*FAILS_TWICE, stdin=reader)
    assert (code, out) == (0, INPUT * 3)


def test_input_after_run_is_killed_leaves_no_file(
    embedded: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedded.folder / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    script = "head -c 3000000 > /dev/null; echo read; exec sleep 600"
    with written(bytes(4 * MEBIBYTE)) as reader:
        process = embedded.begin("--max-attempts", "2", "--", "sh", "-c", script, stdin=reader)
        assert process.stdout is not None
        assert process.stdout.readline() == b"read\n"
        kept = [str(each.readlink()) for each in Path(f"/proc/{process.pid}/fd").glob("*")]
        process.kill()
        process.wait()
    assert any(str(folder) in name for name in kept)
    wait_for(lambda: not list(folder.iterdir()))  # the watchdog deletes the folder of the socket


def test_input_given_without_keeping_it_is_not_given_in_part(embedded: Shell) -> None:
    """The last attempt was timed out by another process, which then allowed one more."""
    script = "head -c 1; touch begun; while [ ! -e enough ]; do sleep 0.02; done; exit 3"
    with written(INPUT) as reader:
        process = embedded.begin("--heartbeat", "1h", "--", "sh", "-c", script, stdin=reader)
        wait_for((embedded.folder / "begun").exists)
        id = embedded.execution.id
        embedded.manager.timeout(id)
        embedded.manager.retry(id, extra_attempts=1)
        (embedded.folder / "enough").touch()
        code, out, err = embedded.end(process)
    assert (code, out) == (3, INPUT[:1])
    assert "No further attempt: standard input" in err
    assert embedded.is_("retrying")


def test_input_beside_many_open_descriptors_is_given_again(embedded: Shell) -> None:
    """`select` fails with descriptors from 1024 on."""
    code = (
        "import os, resource, sys\n"
        "_, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), most))\n"
        "for _ in range(1100): os.set_inheritable(os.dup(1), True)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    with written(INPUT) as reader:
        program = [sys.executable, "-c", code, PROGRAM]
        result, out, _ = embedded.run(*FAILS_TWICE, program=program, stdin=reader)
    assert (result, out) == (0, INPUT * 3)


@pytest.mark.exhaustive
def test_input_taken_by_another_process_does_not_delay_the_end(embedded: Shell) -> None:
    """A reader of the same pipe was faster, so the read waits for data that does not come."""
    code = (
        "import sys\nfrom execution_core.cli import main\n"
        "from execution_core.cli.run import standard_input\n"
        "standard_input.STOP_SECONDS = 0.1\n"
        "standard_input.SpooledInput._is_ready = lambda *_: True\nsys.exit(main())"
    )
    with open_pipe() as (reader, _):
        program = [sys.executable, "-c", code]
        command = ("--max-attempts", "2", "--", "sh", "-c", "exit 3")
        result, _, err = embedded.run(*command, program=program, stdin=reader)
    assert result == 3
    assert "No further attempt: another process reads the same standard input" in err
