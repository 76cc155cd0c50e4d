"""`progress`, `checkpoint` and `log` inside a run: `run` carries them out, which is faster.

It has a connection already. This module imports nothing that takes long.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from .output import warn

SOCKET: Final = "EXECUTION_CORE_SOCKET"
"""The variable with the Unix socket of the run around this process."""
SENT: Final = (
    "EXECUTION_CORE_URL",
    "EXECUTION_CORE_SCHEMA",
    "EXECUTION_ID",
    "EXECUTION_ATTEMPT",
)
"""The variables that say what a report is about."""
REPORTS: Final = ("progress", "checkpoint", "log")
_OWN_DATABASE: Final = ("--url", "--schema")
_OWN_STREAMS: Final = ("-", "-h", "--help")
"""What needs the standard input or output of this process."""


def report_to_run(words: Sequence[str]) -> int | None:
    """Let the run around this process carry out a command, and return the exit code.

    None means that this process has to do it.
    """
    path = os.environ.get(SOCKET)
    if not path or not words or words[0] not in REPORTS:
        return None
    if any(word in _OWN_STREAMS or word.startswith(_OWN_DATABASE) for word in words):
        return None
    request = {"words": list(words), **{name: os.environ.get(name) for name in SENT}}
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError:  # run has ended, or is hidden from this process
            return None
        reply = _ask(connection, request)
    if reply is None:
        print("execution-core: run ended: it is unknown whether this was recorded", file=sys.stderr)
        return 1
    if reply["code"] is None:
        return None
    sys.stdout.write(reply["out"])
    if reply["err"]:
        warn(reply["err"])
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    code: int = reply["code"]
    return code


def _ask(connection: socket.socket, request: dict[str, Any]) -> dict[str, Any] | None:
    try:
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as answer:
            return dict(json.loads(answer.readline()))
    except (OSError, ValueError):
        return None
