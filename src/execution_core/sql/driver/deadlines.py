"""A time limit for calls whose server does not answer: their socket is shut down.

psycopg has no time limit for a call, and that of asyncpg is the host's. A frozen server and a
network that drops packets would hold a call for ever, and a server-side timeout helps only while
the server runs.
"""

import os
import socket
import threading
import time
from contextlib import suppress
from itertools import count
from typing import Any, Final

from .forks import in_children

_INTERVAL: Final = 1.0
_calls: Final = dict[int, tuple[float, Any]]()
_numbers: Final = count()
_threads: Final = list[threading.Thread]()


def begin(driver: Any, seconds: float) -> int:
    """Shut the socket of a connection of psycopg or asyncpg down unless `end` comes in time."""
    number = next(_numbers)
    _calls[number] = time.monotonic() + seconds, driver
    if not _threads:
        _threads.append(threading.Thread(target=_watch, name="call-deadlines", daemon=True))
        _threads[0].start()
    return number


def has_expired(number: int | None) -> bool:
    """Return whether the socket of a call that has not ended has been shut down."""
    return number is not None and number not in _calls


def end(number: int | None) -> None:
    """Forget a call that has ended, if there is one."""
    if number is not None:
        _calls.pop(number, None)


def _watch() -> None:
    while True:
        time.sleep(_INTERVAL)
        now = time.monotonic()
        for number, (limit, _) in [*_calls.items()]:
            # Only one of `end` and this thread removes a call.
            if limit < now and (call := _calls.pop(number, None)):
                # A closed connection has no socket, and another one may have got its number.
                with suppress(Exception), socket.socket(fileno=os.dup(_socket(call[1]))) as shared:
                    shared.shutdown(socket.SHUT_RDWR)


def _socket(driver: Any) -> int:
    if hasattr(driver, "pgconn"):
        return int(driver.pgconn.socket)
    # asyncpg has no public access to it.
    return int(driver._transport.get_extra_info("socket").fileno())  # noqa: SLF001


def _forget_inherited() -> None:
    """Begin without the calls and the thread of the parent of a forked process."""
    _calls.clear()
    _threads.clear()


in_children(_forget_inherited)
