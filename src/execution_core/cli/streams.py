"""The standard streams and descriptors of the command line."""

import io
import os
import select
import sys
from contextlib import suppress

from .output import escape

STDIN, STDOUT, STDERR = range(3)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all data, or raise the error of a closed terminal or a full disk, for example."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # another process made the shared file non-blocking
            select.select([], [descriptor], [])


def write_warning(text: str) -> None:
    """Write an escaped message to stderr; ignore errors."""
    with suppress(OSError):
        line = f"execution-core: {escape(text)}\n"
        write_all(STDERR, line.encode(errors="backslashreplace"))


def ready_standard_streams() -> None:
    """Make stdout and stderr accept any text.

    Closed descriptors are opened on /dev/null: a database file or socket must not get one of fd
    0-2. Characters that the encoding of a stream lacks are written as escapes.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(opened, True)  # noqa: FBT003
    os.close(opened)
    for name, descriptor in (("stdout", STDOUT), ("stderr", STDERR)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
