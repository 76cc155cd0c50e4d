"""The standard streams and descriptors of the command line."""

import io
import os
import select
import sys
from contextlib import suppress

from .output import escape

STDIN, STDOUT, STDERR = range(3)


def write(descriptor: int, data: bytes) -> None:
    """Write all data; ignore errors such as a closed terminal or a full disk."""
    rest = memoryview(data)
    with suppress(OSError):
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # another process made the shared file non-blocking
                select.select([], [descriptor], [])


def write_warning(text: str) -> None:
    """Write an escaped message to stderr; ignore errors."""
    write(STDERR, f"execution-core: {escape(text)}\n".encode(errors="backslashreplace"))


def open_standard_descriptors() -> None:
    """Open closed standard descriptors on /dev/null, so no database file or socket gets fd 0-2."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(opened, True)  # noqa: FBT003
    os.close(opened)


def ready_standard_streams() -> None:
    """Make stdout and stderr accept any text.

    A closed stream goes to /dev/null; otherwise `print` could write stdout's text to stderr.
    Characters that the encoding of a stream lacks are written as escapes.
    """
    open_standard_descriptors()
    for name, descriptor in (("stdout", STDOUT), ("stderr", STDERR)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
