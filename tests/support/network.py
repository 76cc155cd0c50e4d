"""A network namespace of a thread's own, whose loopback can drop all packets."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of unshare(2)."""
RETRIES = Path("/proc/sys/net/ipv4/tcp_retries2")
"""Of the network of the thread that writes to it."""


def in_namespace(work: Callable[[], T]) -> T:
    """Run a function in a thread with a network of its own; what it starts shares the network.

    Raises:
        OSError: this machine does not permit it; root may.
    """

    def run() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "no network namespace can be created")
        _run("ip", "link", "set", "lo", "up")
        # What this machine itself drops is sent again each half second: by default for 8 seconds.
        RETRIES.write_text("200")
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def problem() -> str:
    """Return why this machine has no such networks; empty if it has."""
    if missing := [tool for tool in ("ip", "tc") if not shutil.which(tool)]:
        return f"{' and '.join(missing)} not installed (Debian's package is `iproute2`)"
    try:
        in_namespace(_drop_once)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{error}; the user is {os.geteuid()}, root is 0"
    return ""


@contextmanager
def packets_dropped() -> Iterator[None]:
    """Drop all packets of the loopback of this thread's network."""
    # A queue that has no place for a packet is in every kernel, unlike netem and netfilter.
    _run("tc", "qdisc", "replace", "dev", "lo", "root", "pfifo", "limit", "0")
    try:
        yield
    finally:
        _run("tc", "qdisc", "del", "dev", "lo", "root")


def _drop_once() -> None:
    with packets_dropped():
        pass


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
