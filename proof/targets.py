"""The databases of the proof, and how to inject faults into each."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Final

import psycopg
from sqlalchemy import make_url
from tests.support import postgres
from tests.support.proxy import Cut, Proxy, proxied

from execution_core import migrate

TIMEOUT: Final = 120
"""Seconds after which a wait fails."""
BACKENDS: Final = """
SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
 ORDER BY pid
"""


class Fault(StrEnum):
    """A kind of fault."""

    KILL = "workers killed (SIGKILL)"
    TERMINATE = "connections ended by the server (pg_terminate_backend)"
    STOP = "server crashes (immediate shutdown, SIGQUIT)"
    CRASH = "server crashes (postmaster killed, SIGKILL)"
    BEFORE = "connections cut before a write reaches the server"
    AFTER = "connections cut after a write's COMMIT, before its answer"
    RACING = "connections cut while a write is under way"
    READING = "connections cut before a read reaches the server"


CUTS: Final = {
    Fault.BEFORE: Cut.BEFORE,
    Fault.AFTER: Cut.AFTER,
    Fault.RACING: Cut.RACING,
    Fault.READING: Cut.READING,
}
CRASHES: Final = {Fault.STOP: signal.SIGQUIT, Fault.CRASH: signal.SIGKILL}


class Target:
    """A SQLite file: only its workers can fail."""

    name = "SQLite"
    faults: tuple[Fault, ...] = (Fault.KILL,)
    errors: tuple[str, ...] = ()
    """The SQLAlchemy errors that its faults explain."""

    def __init__(self, url: str) -> None:
        self.url = url
        """The URL for the checker."""
        self.workers_url = url
        self.down = 0.0
        """For how many seconds the server was down."""

    def inject(self, fault: Fault, random: Random) -> None:
        """Inject a fault."""
        raise NotImplementedError(fault)

    def injected(self) -> Counter[Fault]:
        """Count the faults injected so far."""
        return Counter()

    def settle(self) -> None:
        """Wait until no statement runs any more."""


class PostgreSQL(Target):
    """A server that the proof started, behind a proxy."""

    name = "PostgreSQL"
    faults = tuple(Fault)
    errors = ("OperationalError", "InterfaceError")

    def __init__(self, url: str, postmaster: postgres.Postmaster, proxy: Proxy) -> None:
        super().__init__(url)
        self.workers_url = proxy.url
        self._postmaster, self._proxy = postmaster, proxy
        self._counted: Counter[Fault] = Counter()

    def inject(self, fault: Fault, random: Random) -> None:
        """Inject a fault; a cut happens at the next matching statement."""
        if fault in CUTS:
            self._proxy.cut(CUTS[fault])
            return
        if fault in CRASHES:
            crashed = time.monotonic()
            self._postmaster.crash(CRASHES[fault])
            self._postmaster.restart()
            self.down += time.monotonic() - crashed
        else:
            wait_until(lambda: self._terminate(random), "no backend is connected")
        self._counted[fault] += 1

    def injected(self) -> Counter[Fault]:
        """Count the faults injected so far."""
        cuts = {fault: self._proxy.cuts[cut] for fault, cut in CUTS.items()}
        return self._counted + Counter(cuts)

    def settle(self) -> None:
        """Wait until the server has ended all connections."""
        wait_until(lambda: not self._ask(BACKENDS), "the server still has connections")

    def _terminate(self, random: Random) -> bool:
        backends = self._ask(BACKENDS)
        if not backends:
            return False
        return self._ask(f"SELECT pg_terminate_backend({random.choice(backends)})") == [True]

    def _ask(self, statement: str) -> list[object]:
        with psycopg.connect(postgres.dsn(self.url), autocommit=True) as connection:
            return [value for (value,) in connection.execute(statement.encode()).fetchall()]


@contextmanager
def postgresql(server: postgres.Server, folder: Path) -> Iterator[Target]:  # noqa: ARG001
    """Create an empty database on a server that may be crashed."""
    if server.postmaster is None:
        raise ValueError(
            "only a server that this process started may be crashed: postgres.server(own=True)"
        )
    with psycopg.connect(postgres.dsn(server.url), autocommit=True) as connection:
        (number,) = connection.execute("SELECT count(*) FROM pg_database").fetchone() or (0,)
        name = f"proof_{number}"
        connection.execute(f"CREATE DATABASE {name}".encode())
    url = make_url(server.url).set(database=name).render_as_string(hide_password=False)
    migrate.upgrade(url)
    with proxied(url) as proxy:
        yield PostgreSQL(url, server.postmaster, proxy)


@contextmanager
def sqlite(server: postgres.Server, folder: Path) -> Iterator[Target]:  # noqa: ARG001
    """Create an empty database file, in WAL mode like every file that the library opens."""
    url = f"sqlite:///{folder / 'proof.db'}"
    migrate.upgrade(url)
    yield Target(url)


def wait_until(condition: Callable[[], bool], message: str) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not become true.
    """
    limit = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(message)
        time.sleep(0.01)
