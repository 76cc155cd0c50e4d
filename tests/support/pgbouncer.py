"""Start a real PgBouncer in front of a server of the tests."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from .postgres import dsn, free_port, spawn, unprivileged_account, wait_until

BINARY = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
MISSING = "NOT TESTED: PgBouncer is not installed (Debian's package is `pgbouncer`)"

CONFIGURATION = """
[databases]
{database} = host={host} port={port} dbname={database} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {connections}
max_client_conn = 500
server_round_robin = {round_robin}
pidfile = {folder}/pid
{more}
"""


class Bouncer:
    """A PgBouncer that can be killed and started again.

    Args:
        folder: where its configuration and its log are.
        url: the URL of the database through it.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self._configuration, self._log = folder / "ini", folder / "log"

    def start(self) -> None:
        assert BINARY is not None
        with self._log.open("ab") as output:
            self._process = spawn(unprivileged_account(), output, BINARY, str(self._configuration))
        wait_until(lambda: _answers(self.url), self._process, self._log)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@contextmanager
def bouncer(
    url: str, mode: str, *, connections: int = 4, round_robin: bool = True, more: str = ""
) -> Iterator[Bouncer]:
    """Start a PgBouncer for one database.

    Args:
        url: the URL of the database.
        mode: `transaction`, `session` or `statement`.
        connections: how many connections to the server it opens at most.
        round_robin: use the connections in turn, so that a client meets all of them.
        more: further lines of the configuration.
    """
    assert BINARY is not None, MISSING
    target, port = make_url(url), free_port()
    with tempfile.TemporaryDirectory(prefix="execution-core-pgbouncer-") as folder:
        Path(folder).chmod(0o777)
        Path(folder, "ini").write_text(
            CONFIGURATION.format(
                database=target.database,
                host=target.host,
                port=target.port,
                more=more,
                user=target.username,
                listen_port=port,
                mode=mode,
                connections=connections,
                round_robin=int(round_robin),
                folder=folder,
            )
        )
        through = target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        started = Bouncer(Path(folder), through)
        try:
            started.start()
            yield started
        finally:
            started.stop()


@contextmanager
def pgbouncer(url: str, mode: str, **options: Any) -> Iterator[str]:
    """Start a PgBouncer as `bouncer` does; return the database's URL through it."""
    with bouncer(url, mode, **options) as started:
        yield started.url


def _answers(url: str) -> bool:
    try:
        psycopg.connect(dsn(url), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
