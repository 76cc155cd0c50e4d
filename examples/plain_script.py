"""A script for cron that imports a file of prices once, however often it runs.

    pip install 'execution-core[postgresql]'
    export EXECUTION_CORE_URL=postgresql+psycopg://localhost/mine
    python plain_script.py prices.csv      # lines of: article,price

If the file has been imported, a run prints the stored result. If another run is importing it, the
run exits with code 75. If an earlier run died, the run resumes after the last lines that it had
committed. A file with the same name and different contents is refused.
"""

import csv
import hashlib
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, text

from execution_core import (
    AlreadyRunning,
    ExecutionManager,
    ExecutionProblem,
    SqlExecutionStore,
    configure_sqlite,
    migrate,
)

STALLED_AFTER: Final = timedelta(seconds=float(os.environ.get("STALLED_AFTER", "60")))
CREATE_PRICES: Final = "CREATE TABLE IF NOT EXISTS prices (article TEXT PRIMARY KEY, price TEXT)"
SET_PRICE: Final = """
INSERT INTO prices VALUES (:article, :price)
ON CONFLICT (article) DO UPDATE SET price = excluded.price
"""

engine = create_engine(os.environ.get("EXECUTION_CORE_URL", "sqlite:///prices.db"))
if engine.dialect.name == "sqlite":
    configure_sqlite(engine)
manager = ExecutionManager(SqlExecutionStore(engine))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@manager.tracked(
    "import-prices",
    idempotency_key=lambda path: f"import-prices-{path.name}",
    payload=lambda path: {"file": path.name, "sha256": sha256(path)},
    max_attempts=10,
    worker=f"{socket.gethostname()}:{os.getpid()}",
    heartbeat=STALLED_AFTER / 10,
)
def import_prices(path: Path, *, attempt: Any = None) -> dict[str, int]:
    lines, imported = list(csv.reader(path.open(newline=""))), 0
    for chunk in attempt.chunks(lines, size=20):
        with chunk.begin(engine) as connection:
            rows = [{"article": article, "price": price} for article, price in chunk]
            connection.execute(text(SET_PRICE), rows)
        imported += len(chunk)
    return {"lines": len(lines), "in_the_last_attempt": imported}


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} FILE", file=sys.stderr)
        return 2
    with engine.begin() as connection:
        migrate.upgrade(connection)
        connection.execute(text(CREATE_PRICES))
    manager.sweep(stalled_after=STALLED_AFTER, type="import-prices")
    try:
        print(import_prices(Path(sys.argv[1])))
    except AlreadyRunning as problem:
        print(problem)
        return 75  # EX_TEMPFAIL: run it again later
    except (ExecutionProblem, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
