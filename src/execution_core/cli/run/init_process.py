"""What the first process of a container has to do: forward signals, and reap orphans."""

import os
import signal
from contextlib import suppress
from typing import Any

from .events import FORWARDED, TERMINATING


def become_init() -> None:
    """Continue in a child; this process reaps the processes that lose their parents.

    `run` cannot do it itself: it would reap its own children, whose exit status it needs.
    """
    child = os.fork()
    if child == 0:
        # Of the terminal's signals the child gets one, that which this process forwards.
        with suppress(OSError):
            os.setpgid(0, 0)
        return

    def forward(number: int, frame: Any) -> None:  # noqa: ARG001
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (*TERMINATING, *FORWARDED):
        signal.signal(number, forward)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
