"""The databases that are put to the proof, and how each is made to fail."""

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

PATIENCE: Final = 120
"""Seconds after which something that is waited for will not come any more."""
BACKENDS: Final = """
SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
 ORDER BY pid
"""


class Fault(StrEnum):
    """What is made to fail."""

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
    """A SQLite file: nothing of it can fail but those who use it."""

    name = "SQLite"
    faults: tuple[Fault, ...] = (Fault.KILL,)
    errors: tuple[str, ...] = ()
    """Those of SQLAlchemy's that its faults explain."""

    def __init__(self, url: str) -> None:
        self.url = url
        """For those who look afterwards."""
        self.of_workers = url
        self.down = 0.0
        """For how many seconds nobody could connect."""

    def inflict(self, fault: Fault, random: Random) -> None:
        """Make it fail."""
        raise NotImplementedError(fault)

    def inflicted(self) -> Counter[Fault]:
        """Count what has failed so far."""
        return Counter()

    def settle(self) -> None:
        """Wait until nobody is at it any more."""


class PostgreSQL(Target):
    """A server of our own, and a proxy before it."""

    name = "PostgreSQL"
    faults = tuple(Fault)
    errors = ("OperationalError", "InterfaceError")

    def __init__(self, url: str, postmaster: postgres.Postmaster, proxy: Proxy) -> None:
        super().__init__(url)
        self.of_workers = proxy.url
        self._postmaster, self._proxy = postmaster, proxy
        self._counted: Counter[Fault] = Counter()

    def inflict(self, fault: Fault, random: Random) -> None:
        """Make it fail; a cut is made at the next statement that it is for."""
        if fault in CUTS:
            self._proxy.cut(CUTS[fault])
            return
        if fault in CRASHES:
            crashed = time.monotonic()
            self._postmaster.crash(CRASHES[fault])
            self._postmaster.restart()
            self.down += time.monotonic() - crashed
        else:
            wait_until(lambda: self._terminate(random), "nobody is connected")
        self._counted[fault] += 1

    def inflicted(self) -> Counter[Fault]:
        """Count what has failed so far."""
        cuts = {fault: self._proxy.cuts[cut] for fault, cut in CUTS.items()}
        return self._counted + Counter(cuts)

    def settle(self) -> None:
        """Wait until the server has noticed that nobody is there any more."""
        wait_until(lambda: not self._ask(BACKENDS), "the server is still at something")

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
    """Make an empty database on a server that may be crashed."""
    if server.postmaster is None:
        raise ValueError("only a server of our own may be crashed: postgres.server(exclusive=True)")
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
    """Make an empty file, in WAL as all that the library opens."""
    url = f"sqlite:///{folder / 'proof.db'}"
    migrate.upgrade(url)
    yield Target(url)


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it does not come true.
    """
    limit = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(otherwise)
        time.sleep(0.01)
