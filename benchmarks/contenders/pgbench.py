"""The limit: this library's own statements, sent by pgbench, which is written in C.

One client, prepared statements, each of them a transaction of its own; the payload and the result
are parameters, as they are for everybody else. Only the id is made by the server.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

from execution_core import migrate

from . import PAYLOAD, RESULT
from .recorded import require

# A UUIDv7 is a random one (v4) with the milliseconds since 1970 before it and two more bits set.
SCRIPT = """
INSERT INTO executions (id, type, payload, max_attempts, created_at, updated_at, timeout_ms,
       idempotency_key, fingerprint, metadata)
VALUES (encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send(
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1
       ), 'hex')::uuid, 'ship-order', :payload, 3, statement_timestamp(), statement_timestamp(),
       NULL, NULL, NULL, '{}')
ON CONFLICT (idempotency_key) DO NOTHING
RETURNING * \\gset new_
UPDATE executions
   SET status = 'running', error = NULL, attempts = attempts + 1,
       updated_at = greatest(statement_timestamp(), updated_at),
       started_at = greatest(statement_timestamp(), updated_at), completed_at = NULL,
       deadline_at = greatest(statement_timestamp(), updated_at)
                     + timeout_ms * interval '1 millisecond', worker = 'host-1',
       heartbeat_at = greatest(statement_timestamp(), updated_at), due_at = NULL
 WHERE id = :new_id AND status IN ('pending', 'retrying') AND attempts < max_attempts
RETURNING *;
UPDATE executions
   SET status = 'completed', result = :result,
       updated_at = greatest(statement_timestamp(), updated_at),
       completed_at = greatest(statement_timestamp(), updated_at)
 WHERE id = :new_id AND status = 'running'
RETURNING *;
"""


def version() -> str:
    """Name it as the figures do."""
    said = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True)
    return f"pgbench {said.stdout.split()[2]}"


@contextmanager
def lifecycles(url: str) -> Iterator[Callable[[int], float]]:
    """Yield a function that runs a number of lifecycles and returns the seconds they took."""
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    migrate.upgrade(url)
    command = [binary(), "-M", "prepared", "-n", "-c", "1", "-f", "-"]
    command += ["-D", f"payload={json.dumps(PAYLOAD)}", "-D", f"result={json.dumps(RESULT)}"]
    total = 0

    def run(count: int) -> float:
        nonlocal total
        said = subprocess.run(
            [*command, "-t", str(count), dsn],
            input=SCRIPT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        total += count
        require(url, total, "SELECT count(*) FROM executions WHERE status = 'completed'")
        # The other rate, of versions before 14, includes connecting.
        rate = re.search(r"tps = ([\d.]+) \((?:without|excluding)", said.stdout)
        if rate is None:
            raise RuntimeError(f"pgbench reported no rate: {said.stdout}")
        return count / float(rate[1])

    yield run


def binary() -> str:
    """Find pgbench: on the path, beside pg_config, or where Debian keeps its servers."""
    if found := shutil.which("pgbench"):
        return found
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True
    )
    if config := shutil.which("pg_config"):
        said = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
        folders.insert(0, Path(said.stdout.strip()))
    for folder in folders:
        if (folder / "pgbench").exists():
            return str(folder / "pgbench")
    raise FileNotFoundError("pgbench is neither on the path nor in /usr/lib/postgresql")
