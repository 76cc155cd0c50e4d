"""The databases of the proof, and how to inject faults into each."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any, Final

import psycopg
from sqlalchemy import make_url
from tests.support import postgres
from tests.support.pgbouncer import BINARY, Bouncer, bouncer
from tests.support.proxy import Cut, Proxy, proxied
from tests.support.standby import power_off, promote, synchronous_standby

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
    TERMINATE = "server processes ended (pg_terminate_backend)"
    STOP = "server crashes (immediate shutdown, SIGQUIT)"
    CRASH = "server crashes (postmaster killed, SIGKILL)"
    POOLER = "pooler killed (SIGKILL) and started again"
    FAILOVER = "primary killed (SIGKILL), standby promoted"
    BEFORE = "connections cut before a write reaches the server"
    AFTER = "connections cut after a COMMIT, before its answer"
    RACING = "connections cut while a write is under way"
    READING = "connections cut before a read reaches the server"


CUTS: Final = {
    Fault.BEFORE: Cut.BEFORE,
    Fault.AFTER: Cut.AFTER,
    Fault.RACING: Cut.RACING,
    Fault.READING: Cut.READING,
}
ERRORS: Final[tuple[str, ...]] = ("OperationalError", "InterfaceError")
"""The errors of SQLAlchemy that a lost connection explains."""
CRASHES: Final = {Fault.STOP: signal.SIGQUIT, Fault.CRASH: signal.SIGKILL}
OUTAGES: Final = (*CRASHES, Fault.POOLER, Fault.FAILOVER)
"""The faults that end all connections."""


class Target:
    """A SQLite file: only its workers can fail."""

    name = "SQLite"
    faults: tuple[Fault, ...] = (Fault.KILL,)
    errors: tuple[str, ...] = ()
    """The errors of SQLAlchemy that its faults explain."""

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
    faults = (Fault.KILL, Fault.TERMINATE, *CRASHES, *CUTS)
    errors: tuple[str, ...] = ERRORS

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
        if fault in OUTAGES:
            begun = time.monotonic()
            self._crash(fault)
            self.down += time.monotonic() - begun
        else:
            wait_until(lambda: self._terminate(random), "no backend is connected")
        self._counted[fault] += 1

    def injected(self) -> Counter[Fault]:
        """Count the faults injected so far."""
        cuts = {fault: self._proxy.cuts[cut] for fault, cut in CUTS.items()}
        return self._counted + Counter(cuts)

    def settle(self) -> None:
        """Wait until the server has ended all connections."""
        wait_until(lambda: not ask(self.url, BACKENDS), "the server still has connections")

    def _crash(self, fault: Fault) -> None:
        self._postmaster.crash(CRASHES[fault])
        self._postmaster.restart()

    def _terminate(self, random: Random) -> bool:
        backends = ask(self.url, BACKENDS)
        if not backends:
            return False
        return ask(self.url, f"SELECT pg_terminate_backend({random.choice(backends)})") == [True]


class PgBouncer(PostgreSQL):
    """A server behind a PgBouncer in transaction mode, behind a proxy."""

    name = "PgBouncer"
    faults = (*PostgreSQL.faults, Fault.POOLER)
    # PgBouncer says why it closes a connection, which psycopg reads as a second result.
    errors = (*ERRORS, "InternalError: (psycopg.InternalError) received 2 results from command")

    def __init__(
        self, url: str, postmaster: postgres.Postmaster, proxy: Proxy, pooler: Bouncer
    ) -> None:
        super().__init__(url, postmaster, proxy)
        self._pooler = pooler

    def settle(self) -> None:
        """Wait until the server has ended all connections, which the pooler keeps."""
        self._pooler.kill()
        super().settle()

    def _crash(self, fault: Fault) -> None:
        if fault is Fault.POOLER:
            self._pooler.kill()
            self._pooler.start()
        else:
            super()._crash(fault)


class Failover(Target):
    """A primary and a synchronous standby, which is promoted; then it gets a standby itself.

    No connection is ended by the server: that would show a commit that no standby has.
    """

    name = "failover"
    faults = (Fault.KILL, Fault.FAILOVER)
    errors = ERRORS

    def __init__(self, primary: postgres.Server, database: str, stack: ExitStack) -> None:
        self._stack, self._database, self._count = stack, database, 0
        self._primary, self._standby = primary, stack.enter_context(synchronous_standby(primary))
        super().__init__(with_database(primary.url, database))
        hosts = [f"127.0.0.1:{make_url(each.url).port}" for each in (primary, self._standby)]
        self.workers_url = (
            make_url(self.url)
            .set(host=None, port=None)
            .update_query_dict({"host": hosts, "target_session_attrs": "read-write"})
            .render_as_string(hide_password=False)
        )

    def inject(self, fault: Fault, random: Random) -> None:  # noqa: ARG002
        """Kill the primary and promote its standby."""
        begun, port = time.monotonic(), make_url(self._primary.url).port
        power_off(self._primary)
        promote(self._standby)
        self.down += time.monotonic() - begun
        self._count += 1
        self._primary = self._standby
        self.url = with_database(self._primary.url, self._database)
        self._standby = self._stack.enter_context(synchronous_standby(self._primary, port))

    def injected(self) -> Counter[Fault]:
        """Count the faults injected so far."""
        return Counter({Fault.FAILOVER: self._count})

    def settle(self) -> None:
        """Wait until the server has ended all connections."""
        wait_until(lambda: not ask(self.url, BACKENDS), "the server still has connections")

    def stop(self) -> None:
        """Stop the primary, which must not wait for its standby."""
        assert self._primary.postmaster is not None
        self._primary.postmaster.stop()


def create_database(server: postgres.Server) -> str:
    """Create an empty migrated database and return its URL."""
    (number,) = ask(server.url, "SELECT count(*) FROM pg_database")
    url = with_database(server.url, f"proof_{number}")
    ask(server.url, f"CREATE DATABASE proof_{number}")
    migrate.upgrade(url)
    return url


@contextmanager
def postgresql(server: postgres.Server, folder: Path) -> Iterator[Target]:  # noqa: ARG001
    """Create an empty database on a server that may be crashed."""
    if server.postmaster is None:
        raise ValueError(
            "only a server that this process started may be crashed: postgres.server(own=True)"
        )
    url = create_database(server)
    with proxied(url) as proxy:
        yield PostgreSQL(url, server.postmaster, proxy)


@contextmanager
def pgbouncer(server: postgres.Server, folder: Path) -> Iterator[Target]:  # noqa: ARG001
    """Create an empty database on a server that may be crashed, behind a PgBouncer."""
    assert server.postmaster is not None
    url, options = create_database(server), "server_login_retry = 0.1"
    with (
        bouncer(url, "transaction", connections=8, more=options) as pooler,
        proxied(pooler.url) as proxy,
    ):
        yield PgBouncer(url, server.postmaster, proxy, pooler)


@contextmanager
def failover(server: postgres.Server, folder: Path) -> Iterator[Target]:  # noqa: ARG001
    """Start a primary of its own with an empty database, and a synchronous standby."""
    with postgres.server(own=True, durable=True) as primary, ExitStack() as stack:
        database = make_url(create_database(primary)).database
        target = Failover(primary, str(database), stack)
        stack.callback(target.stop)
        yield target


@contextmanager
def sqlite(server: postgres.Server, folder: Path) -> Iterator[Target]:  # noqa: ARG001
    """Create an empty database file, in WAL mode like every file that the library opens."""
    url = f"sqlite:///{folder / 'proof.db'}"
    migrate.upgrade(url)
    yield Target(url)


GROUNDS: Final[tuple[Callable[..., AbstractContextManager[Target]], ...]] = (
    *(postgresql, sqlite),
    *((pgbouncer,) if BINARY else ()),
    failover,
)


def with_database(url: str, database: str) -> str:
    """Return the URL of another database of a server."""
    return make_url(url).set(database=database).render_as_string(hide_password=False)


def ask(url: str, statement: str) -> list[Any]:
    """Execute one statement, and return the first column of its result."""
    with psycopg.connect(postgres.dsn(url), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return [value for (value, *_) in cursor.fetchall()] if cursor.description else []


def wait_until(condition: Callable[[], bool], message: str, pause: float = 0.01) -> None:
    """Wait for a condition; `pause` is the time between two looks, in seconds.

    Raises:
        TimeoutError: it did not become true.
    """
    limit = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(message)
        time.sleep(pause)
