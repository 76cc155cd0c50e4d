"""Start a synchronous standby of a server of the tests, and fail over to it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg.sql import SQL
from sqlalchemy import make_url

from . import waiting
from .postgres import Server, address, dsn, free_port

SYNCHRONOUS = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
PROCESSES = "SELECT pid, backend_type FROM pg_stat_activity WHERE pid <> pg_backend_pid()"


@contextmanager
def synchronous_standby(primary: Server, port: int | None = None) -> Iterator[Server]:
    """Start a standby whose commits the primary waits for.

    Args:
        primary: a server that the tests started.
        port: where the standby listens; by default on a free port.
    """
    assert primary.installation is not None
    installation, source = primary.installation, make_url(primary.url)
    with installation.folder() as folder, (folder / "log").open("w+b") as log:
        data, port = folder / "data", port or free_port()
        installation.run(
            log, "pg_basebackup", "-D", str(data), "-R", "-X", "stream", "--checkpoint=fast",
            "-h", str(source.host), "-p", str(source.port), "-U", str(source.username),
        )  # fmt: skip
        postmaster = installation.postmaster(log, data, port, "-c", "max_connections=200")
        try:
            postmaster.start()
            with psycopg.connect(dsn(primary.url), autocommit=True) as connection:
                set_standby_names(connection, "*")
                waiting.wait_until(lambda: connection.execute(SYNCHRONOUS).fetchone())
            yield Server(address(port), "standby", postmaster, installation)
        finally:
            postmaster.stop()


def set_standby_names(connection: psycopg.Connection, names: str) -> None:
    """Let commits of a server wait for these standbys."""
    connection.execute(SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(names))
    connection.execute("SELECT pg_reload_conf()")


def power_off(primary: Server) -> list[int]:
    """Kill all processes of a server, as a power failure does; return those of its clients."""
    assert primary.postmaster is not None
    with psycopg.connect(dsn(primary.url), autocommit=True) as connection:
        # Stopped, it starts no process and ends none.
        os.kill(primary.postmaster.pid, signal.SIGSTOP)
        processes = connection.execute(PROCESSES).fetchall()
        for pid in (*(pid for pid, _ in processes), connection.info.backend_pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        primary.postmaster.crash(signal.SIGKILL)
    return [pid for pid, kind in processes if kind == "client backend"]


def promote(standby: Server) -> None:
    """Make a primary of a standby."""
    with psycopg.connect(dsn(standby.url), autocommit=True) as connection:
        assert connection.execute("SELECT pg_promote()").fetchone() == (True,)
