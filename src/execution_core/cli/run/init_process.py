"""What the first process of a container has to do: forward signals, and reap orphans.

It imports nothing that takes long: until it is ready, the kernel drops the signals for process 1.
"""

import os
import signal
from contextlib import suppress
from typing import Any


def become_init() -> None:
    """Continue in a child; this process reaps the processes that lose their parents.

    `run` cannot do it itself: it would reap its own children, whose exit status it needs.
    """
    names = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2")
    forwarded = [getattr(signal, f"SIG{name}") for name in names]
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    child = os.fork()
    if child == 0:
        # Of the terminal's signals the child gets one, that which this process forwards.
        with suppress(OSError):
            os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
        return

    def forward(number: int, frame: Any) -> None:  # noqa: ARG001
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in forwarded:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
