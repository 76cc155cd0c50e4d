"""Start a real PgBouncer in front of a server of the tests."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def pgbouncer(
    url: str, mode: str, *, connections: int = 4, round_robin: bool = True, more: str = ""
) -> Iterator[str]:
    """Start a PgBouncer for one database; return the database's URL through it.

    Args:
        url: the URL of the database.
        mode: `transaction`, `session` or `statement`.
        connections: how many connections to the server it opens at most.
        round_robin: use the connections in turn, so that a client meets all of them.
        more: further lines of the configuration.
    """
    assert BINARY is not None, MISSING
    target, account, port = make_url(url), unprivileged_account(), free_port()
    with tempfile.TemporaryDirectory(prefix="execution-core-pgbouncer-") as folder:
        Path(folder).chmod(0o777)
        configuration, log = Path(folder, "ini"), Path(folder, "log")
        configuration.write_text(
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
        with log.open("wb") as output:
            process = spawn(account, output, BINARY, str(configuration))
        through = target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        try:
            wait_until(lambda: _answers(through), process, log)
            yield through
        finally:
            process.terminate()
            process.wait(20)


def _answers(url: str) -> bool:
    try:
        psycopg.connect(dsn(url), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
