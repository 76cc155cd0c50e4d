"""The standard input of a command: each attempt gets all of it from the beginning."""

import os
import select
import stat
import subprocess
import tempfile
import threading
from contextlib import suppress
from typing import IO, Final

from ..streams import STDIN, write_warning

MAX_SPOOL_BYTES: Final = 256 * 1024 * 1024
"""What a later attempt can get again of an input that cannot be rewound."""
STOP_SECONDS: Final = 5.0
"""After an attempt has ended, wait this long for a read that another process made block."""
_CHUNK: Final = 64 * 1024


class InputSource:
    """Give each attempt the standard input: `source.open(again=True)`.

    A terminal is not passed on: from another session, reading from it would stop the command or
    fail. A file is rewound. Of a pipe or a socket, what an attempt may read is kept in a temporary
    file for the next one.
    """

    def __init__(self) -> None:
        self._start = None
        if stat.S_ISREG(os.fstat(STDIN).st_mode):
            self._start = os.lseek(STDIN, 0, os.SEEK_CUR)
        self._spool: IO[bytes] | None = None
        self._spooled = 0
        self.refusal: str | None = None
        """Why a further attempt would not get the whole input; None if it would."""

    def open(self, *, again: bool) -> "AttemptInput":
        """Return the input of one attempt; `again` says that another attempt may follow."""
        if os.isatty(STDIN):
            return AttemptInput(subprocess.DEVNULL)
        if self._start is not None:
            os.lseek(STDIN, self._start, os.SEEK_SET)
            return AttemptInput(None)
        if stat.S_ISCHR(os.fstat(STDIN).st_mode):
            return AttemptInput(None)
        if not again:  # another process may nevertheless allow one more attempt
            self.refusal = self.refusal or "standard input was not kept: it was the last attempt"
        if not (again or self._spooled):
            return AttemptInput(None)
        return SpooledInput(self, keep=again)

    def read(self, position: int) -> bytes:
        """Return what is kept from a position on, at most one chunk."""
        return os.pread(self._spool.fileno(), _CHUNK, position) if self._spool is not None else b""

    def keep(self, data: bytes) -> None:
        """Keep data for the next attempt, unless there is too much of it or no room."""
        if self.refusal is not None:
            return
        if self._spooled + len(data) > MAX_SPOOL_BYTES:
            limit = MAX_SPOOL_BYTES // 1024**2
            self.refusal = f"standard input has more than {limit} MiB; a file has no such limit"
            return
        try:
            if self._spool is None:
                self._spool = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - until run ends
            rest = memoryview(data)
            while rest:
                rest = rest[self._spool.write(rest) or 0 :]
        except OSError as error:
            self.refusal = f"standard input could not be kept: {error.strerror}"
            return
        self._spooled += len(data)


class AttemptInput:
    """The input of one attempt: `stdin` is an argument of `subprocess.Popen`."""

    def __init__(self, stdin: int | None) -> None:
        self.stdin = stdin

    def begin(self) -> None:
        """Continue after the command has started, or could not be started."""

    def end(self) -> None:
        """Pass on nothing more: the attempt has ended."""


class SpooledInput(AttemptInput):
    """A pipe into which a thread writes what an earlier attempt got, and then what arrives."""

    def __init__(self, source: InputSource, *, keep: bool) -> None:
        self._reader, self._writer = os.pipe()
        super().__init__(self._reader)
        self._source = source
        self._keep = keep
        self._stop_reader, self._stop_writer = os.pipe()
        self._thread = threading.Thread(target=self._pass_on, name="input", daemon=True)

    def begin(self) -> None:
        """Begin to pass on."""
        os.close(self._reader)
        os.set_blocking(self._writer, False)
        self._thread.start()

    def end(self) -> None:
        """Stop passing on, and keep the rest for the next attempt."""
        os.close(self._stop_writer)
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            self._source.refusal = "another process reads the same standard input"
            return
        os.close(self._stop_reader)

    def _pass_on(self) -> None:
        position = 0
        try:
            while data := self._source.read(position):
                position += len(data)
                self._write(data)
            while self._is_ready(self._writer, select.POLLOUT) and self._is_ready(
                STDIN, select.POLLIN
            ):
                try:
                    data = os.read(STDIN, _CHUNK)
                except BlockingIOError:  # another process was faster
                    continue
                except OSError as error:
                    write_warning(f"Standard input ends early: {error.strerror}")
                    return
                if not data:
                    return
                if self._keep:
                    self._source.keep(data)
                self._write(data)
        except BrokenPipeError:  # the command reads no more
            return
        finally:
            os.close(self._writer)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and self._is_ready(self._writer, select.POLLOUT):
            with suppress(BlockingIOError):
                rest = rest[os.write(self._writer, rest) :]

    def _is_ready(self, descriptor: int, event: int) -> bool:
        """Wait until a descriptor is ready; return False if the attempt has ended."""
        poll = select.poll()  # `select` refuses descriptors from 1024 on
        poll.register(descriptor, event)
        poll.register(self._stop_reader, select.POLLIN)
        return self._stop_reader not in dict(poll.poll())
