"""A POSIX process in its own process group, whose output is forwarded and its tail kept.

The group ends with the process that started it: a watchdog kills it when `run` is killed.
"""

import os
import selectors
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Final

from ..streams import STDERR, STDIN, STDOUT, write_all, write_warning

TAIL_LINES: Final = 20
TAIL_BYTES: Final = 8 * 1024
DRAIN_SECONDS: Final = 1.0
"""After the command has ended, wait this long for output of children that hold its pipes."""
_CHUNK: Final = 64 * 1024  # the capacity of a pipe
_WATCHDOG: Final = """\
trap '' HUP INT QUIT TERM
read -r folder
read -r group && read -r ended && exit
[ -z "$folder" ] || rm -rf -- "$folder"
[ -n "$group" ] && kill -s TERM -- "-$group" && sleep 0.5 && kill -s KILL -- "-$group"
"""
"""Reads a folder to delete, the number of the group, and then a line if all is well. At the end of
the file without that line, `run` is dead. A shell starts ten times as fast as Python."""
_WATCHDOG_NAME: Final = "execution-core-watchdog"  # as argument 0 it would be an applet of busybox

Notify = Callable[[object], None]
"""Receives, from another thread, the `ChildProcess` or `OutputPump` that has ended."""


class ChildProcess:
    """Start a command in its own session: `ChildProcess(["make"], os.environ, None, print)`.

    `stdin` is that of `subprocess.Popen`. `folder` is deleted if this process is
    killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        stdin: int | None,
        notify: Notify,
        folder: str | None = None,
    ) -> None:
        # If both have the same target, one pipe keeps their order.
        together = os.path.sameopenfile(STDOUT, STDERR)
        self._folder = folder
        self._start_watchdog()
        self._has_warned = False
        try:
            # Python 3.12 warns of forks beside threads: what runs in the child takes no lock.
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                self._process = subprocess.Popen(  # noqa: S603 - the command of the user
                    command,
                    env=environment,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT if together else subprocess.PIPE,
                    bufsize=0,
                    start_new_session=True,
                    preexec_fn=self._announce_group,  # noqa: PLW1509
                )
        except BaseException:
            self.end_watch()
            raise
        self._notify = notify
        self.output = OutputPump(self._process.stdout, self._process.stderr, notify)
        threading.Thread(target=self._wait, name="child", daemon=True).start()

    @property
    def status(self) -> int | Any:
        """The exit status, None before it has ended; negative if a signal ended it."""
        return self._process.returncode

    def signal(self, number: int) -> bool:
        """Send a signal to the group; return whether the group still has processes."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # the remaining processes run as another user
            return True
        return True

    def ensure_watched(self) -> None:
        """Start another watchdog if somebody has ended it, and warn the first time."""
        if self._watchdog is None or self._watchdog.poll() is None:
            return
        if not self._has_warned:
            write_warning("The watchdog of the command was killed. Another one is started")
        self._has_warned = True
        self._start_watchdog()
        self._tell_watchdog(f"{self._process.pid}\n")

    def end_watch(self) -> None:
        """Stop the watchdog: the processes that are left in the group may outlive `run`."""
        self._tell_watchdog("ended\n")
        if self._watchdog is not None:
            self._watchdog.communicate()

    def _start_watchdog(self) -> None:
        self._watchdog: subprocess.Popen[bytes] | None = None
        try:
            self._watchdog = subprocess.Popen(  # noqa: S603
                ["/bin/sh", "-c", 'eval "$1"', _WATCHDOG_NAME, _WATCHDOG],
                # For rm and sleep; it outlives `run`, and needs none of its secrets.
                env={"PATH": os.environ.get("PATH", os.defpath)},
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            write_warning(f"No watchdog: {error}. If run is killed, its command continues")
        self._tell_watchdog(f"{self._folder or ''}\n")

    def _announce_group(self) -> None:
        """Tell the watchdog the group, in the child: `run` may be killed before it knows it."""
        self._tell_watchdog(f"{os.getpid()}\n")

    def _tell_watchdog(self, line: str) -> None:
        if self._watchdog is not None and self._watchdog.stdin is not None:
            with suppress(OSError):  # somebody has ended it
                self._watchdog.stdin.write(line.encode())

    def is_alive(self) -> bool:
        """Return whether the group still has processes."""
        if self.status is not None:
            with suppress(ChildProcessError):
                # The first process of a container inherits orphans and must reap them.
                while os.waitpid(-self._process.pid, os.WNOHANG) != (0, 0):
                    pass
        return self.signal(0)

    def _wait(self) -> None:
        self._process.wait()
        self.output.finish()
        self._notify(self)


class OutputPump:
    """Forward the bytes of a child's pipes and keep the last ones.

    What cannot be written is not lost in silence: the pipe is closed, so that the child gets
    SIGPIPE, as without `run`.
    """

    def __init__(self, stdout: IO[bytes] | None, stderr: IO[bytes] | None, notify: Notify) -> None:
        self._pipes = {
            pipe: sink for pipe, sink in ((stdout, STDOUT), (stderr, STDERR)) if pipe is not None
        }
        self._terminals = {sink for sink in self._pipes.values() if os.isatty(sink)}
        self._ended_reader, self._ended_writer = os.pipe()
        self._tail = bytearray()
        self._notify = notify
        self.finished = False
        """Whether all output has been forwarded."""
        self.error: OSError | None = None
        """Why output was lost, unless its reader closed the pipe, as `head` does."""
        threading.Thread(target=self._forward, name="output", daemon=True).start()

    def finish(self) -> None:
        """Forward what the pipes still contain, and then stop: the command has ended."""
        os.close(self._ended_writer)

    def tail(self) -> str:
        """Return the last lines as text; bytes that are not UTF-8 are replaced."""
        tail = bytes(self._tail)
        if len(tail) > TAIL_BYTES:
            # Remove the rest of a cut character.
            tail = tail[-TAIL_BYTES:].lstrip(bytes(range(0x80, 0xC0)))
        lines = tail.decode(errors="replace").splitlines(keepends=True)
        return "".join(lines[-TAIL_LINES:])

    def _forward(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._ended_reader, selectors.EVENT_READ)
            for pipe, sink in self._pipes.items():
                selector.register(pipe, selectors.EVENT_READ, sink)
            until: float | None = None
            while self._pipes:
                left = None if until is None else max(0.0, until - time.monotonic())
                for key, _ in selector.select(left):
                    if key.fd == self._ended_reader:
                        selector.unregister(self._ended_reader)
                        until = time.monotonic() + DRAIN_SECONDS
                    elif not self._read(key):
                        selector.unregister(key.fileobj)
                        self._close(key.fileobj)
                if left == 0:
                    break
        os.close(self._ended_reader)
        for pipe in list(self._pipes):
            _discard(pipe)
            self._close(pipe)
        self.finished = True
        self._notify(self)

    def _read(self, key: selectors.SelectorKey) -> bool:
        data = os.read(key.fd, _CHUNK)
        self._keep(data)
        try:
            write_all(key.data, data)
        except OSError as error:
            if key.data in self._terminals:  # it was closed: under nohup the command continues
                return bool(data)
            if not isinstance(error, BrokenPipeError):
                self.error = self.error or error
            return False
        return bool(data)

    def _keep(self, data: bytes) -> None:
        if b"\r" in data:  # a terminal would show what came last
            data = b"\n".join(map(_visible, bytes(self._tail + data).split(b"\n")))
            self._tail.clear()
        self._tail += data[-TAIL_BYTES - 1 :]  # one byte more shows that the tail was cut
        del self._tail[: -TAIL_BYTES - 1]

    def _close(self, pipe: Any) -> None:
        del self._pipes[pipe]
        pipe.close()


def _visible(line: bytes) -> bytes:
    """Return what a terminal shows of a line, with the carriage returns at its end."""
    text = line.rstrip(b"\r")
    return line[text.rfind(b"\r") + 1 :]


def _discard(pipe: IO[bytes]) -> None:
    """Read what background children will write: without a reader they would get SIGPIPE."""
    null = os.devnull, os.O_WRONLY, 0
    files: list[Any] = [(os.POSIX_SPAWN_DUP2, pipe.fileno(), STDIN)]
    files += [(os.POSIX_SPAWN_OPEN, stream, *null) for stream in (STDOUT, STDERR)]
    with suppress(OSError):
        # Nobody waits for it: it ends with the last of the background children.
        os.posix_spawnp("cat", ["cat"], os.environ, file_actions=files, setpgroup=0)


def signal_name(number: int) -> str:
    """Return the name of a signal, such as `SIGKILL`, or `SIG` and its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
