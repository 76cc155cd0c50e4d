"""The standard streams and descriptors of the command line."""

import io
import os
import select
import sys
from contextlib import suppress

from .output import escape

STDIN, STDOUT, STDERR = range(3)


def write(descriptor: int, data: bytes) -> None:
    """Write to a file that may be gone: a closed terminal or a full disk must not stop anything."""
    rest = memoryview(data)
    with suppress(OSError):
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # another process that shares it has made it so
                select.select([], [descriptor], [])


def write_warning(text: str) -> None:
    """Tell the user something, if there still is one; what it quotes cannot move the cursor."""
    write(STDERR, f"execution-core: {escape(text)}\n".encode(errors="backslashreplace"))


def keep_standard_descriptors() -> None:
    """Open what is closed of 0, 1 and 2, lest the database's file or socket become one of them."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(opened, True)  # noqa: FBT003
    os.close(opened)


def ready_standard_streams() -> None:
    """Make standard output and error ready for all that may be printed, whatever they are.

    What is closed goes nowhere: `print` would write what is meant for the one to the other. What
    a stream's encoding has no character for is spelt.
    """
    keep_standard_descriptors()
    for name, descriptor in (("stdout", STDOUT), ("stderr", STDERR)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
