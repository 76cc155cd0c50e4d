"""A child process in a group of its own: its output is passed on, and the end of it is kept.

For POSIX. It knows nothing of executions.
"""

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Final

from ..streams import (
    STDERR,
    STDIN,
    STDOUT,
    write,
)

TAIL_LINES: Final = 20
TAIL_BYTES: Final = 8 * 1024
DRAIN_SECONDS: Final = 1.0
"""How long output is waited for once the command has ended, where others still hold its pipes."""
_CHUNK: Final = 64 * 1024  # as much as a pipe holds

Report = Callable[[object], None]
"""Is told, from another thread, which `Child` or `Output` has come to its end."""


class ChildProcess:
    """A command in a session and a process group of its own: `Child(["make"], os.environ, print)`.

    Args:
        command: the program and its arguments.
        environment: its environment variables.
        report: told when the command has ended, and when its output has.

    Raises:
        OSError: it cannot be run.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], report: Report
    ) -> None:
        # Where both go to the same place anyway, one pipe keeps them in their order.
        together = os.path.sameopenfile(STDOUT, STDERR)
        self._process = subprocess.Popen(  # noqa: S603 - what the user asked for
            command,
            env=environment,
            # Out of its session, reading from the terminal would stop it or fail.
            stdin=subprocess.DEVNULL if os.isatty(STDIN) else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if together else subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._report = report
        self.status: int | None = None
        """Once it has ended, its exit status; below 0, the signal that ended it."""
        self.output = OutputPump(self._process.stdout, self._process.stderr, report)
        threading.Thread(target=self._wait, name="child", daemon=True).start()

    def signal(self, number: int) -> bool:
        """Signal the whole group, and tell whether anybody is left in it."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # whoever is left has become another user
            return True
        return True

    def is_alive(self) -> bool:
        """Tell whether anybody is left in its group."""
        if self.status is not None:
            with suppress(ChildProcessError):
                # The first process of a container inherits orphans, and has to bury them.
                while os.waitpid(-self._process.pid, os.WNOHANG) != (0, 0):
                    pass
        return self.signal(0)

    def _wait(self) -> None:
        self.status = self._process.wait()
        self.output.end()
        self._report(self)


class OutputPump:
    """Passes on what comes out of a child's pipes, byte for byte, and keeps the end of it."""

    def __init__(self, stdout: IO[bytes] | None, stderr: IO[bytes] | None, report: Report) -> None:
        self._pipes = {
            pipe: sink for pipe, sink in ((stdout, STDOUT), (stderr, STDERR)) if pipe is not None
        }
        self._ending, self._end = os.pipe()
        self._kept = bytearray()
        self._report = report
        self.ended = False
        """Whether all of it has been passed on."""
        threading.Thread(target=self._pass_on, name="output", daemon=True).start()

    def end(self) -> None:
        """Say that the command has ended: what its pipes hold is the rest."""
        os.close(self._end)

    def tail(self) -> str:
        """Return the last lines, as text; what is no UTF-8 is replaced."""
        kept = bytes(self._kept)
        if len(kept) > TAIL_BYTES:
            kept = kept[-TAIL_BYTES:].lstrip(bytes(range(0x80, 0xC0)))  # half a character
        lines = kept.decode(errors="replace").splitlines(keepends=True)
        return "".join(lines[-TAIL_LINES:])

    def _pass_on(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._ending, selectors.EVENT_READ)
            for pipe, sink in self._pipes.items():
                selector.register(pipe, selectors.EVENT_READ, sink)
            until: float | None = None
            while self._pipes:
                left = None if until is None else max(0.0, until - time.monotonic())
                for key, _ in selector.select(left):
                    if key.fd == self._ending:
                        selector.unregister(self._ending)
                        until = time.monotonic() + DRAIN_SECONDS
                    elif not self._read(key):
                        selector.unregister(key.fileobj)
                        self._close(key.fileobj)
                if left == 0:
                    break
        os.close(self._ending)
        for pipe in list(self._pipes):
            self._close(pipe)
        self.ended = True
        self._report(self)

    def _read(self, key: selectors.SelectorKey) -> bool:
        data = os.read(key.fd, _CHUNK)
        self._kept += data[-TAIL_BYTES - 1 :]  # one more, to see that there was more
        del self._kept[: -TAIL_BYTES - 1]
        write(key.data, data)
        return bool(data)

    def _close(self, pipe: Any) -> None:
        del self._pipes[pipe]
        pipe.close()


def signal_name(number: int) -> str:
    """Return `SIGKILL` for 9; a number of its own for what has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
