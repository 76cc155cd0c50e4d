"""APScheduler starts a report on time; execution-core lets one of several schedulers make it.

    pip install 'apscheduler<4' 'execution-core[postgresql]'
    export EXECUTION_CORE_URL=postgresql+psycopg://localhost/mine
    python apscheduler_jobs.py      # on two hosts, so that one of them may fail

The time for which a report is scheduled is the idempotency key of its execution. Both schedulers
start the job at that time: one makes the report, the other finds it made, or being made. What a
scheduler leaves behind when it dies, the other one takes over.
"""

import logging
import os
import signal
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import create_engine, text

from execution_core import (
    AlreadyRunning,
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
    migrate,
)

STALLED_AFTER: Final = timedelta(seconds=float(os.environ.get("STALLED_AFTER", "60")))
EVERY_MINUTE: Final = CronTrigger(second=os.environ.get("SECOND", "0"), timezone=UTC)
GRACE: Final = 1
"""How many seconds late a report may start: less than there are between two of them."""

engine = create_engine(os.environ.get("EXECUTION_CORE_URL", "sqlite:///reports.db"))
if engine.dialect.name == "sqlite":
    configure_sqlite(engine)
manager = ExecutionManager(SqlExecutionStore(engine))


def start_report() -> None:
    # APScheduler 3 does not tell a job for when it was scheduled. Its trigger does.
    earliest = datetime.now(UTC) - timedelta(seconds=GRACE)
    scheduled = EVERY_MINUTE.get_next_fire_time(None, earliest)
    with suppress(AlreadyRunning):  # by the other scheduler
        make_report(scheduled.isoformat())


@manager.tracked(
    "report",
    idempotency_key=lambda scheduled: f"report-{scheduled}",
    payload=lambda scheduled: {"scheduled": scheduled},
    max_attempts=3,
    worker=f"{socket.gethostname()}:{os.getpid()}",
    heartbeat=STALLED_AFTER / 10,
)
def make_report(scheduled: str, *, attempt: Any = None) -> None:
    for part in attempt.each(range(10)):
        time.sleep(0.05)  # a query that takes its time
        with engine.begin() as connection:
            connection.execute(
                text("INSERT INTO report_parts VALUES (:scheduled, :part, :attempt)"),
                {"scheduled": scheduled, "part": part, "attempt": attempt.number},
            )


def take_over() -> None:
    """Go on with what a scheduler left behind when it died."""
    manager.sweep(stalled_after=STALLED_AFTER, type="report")
    for lost in manager.list(type="report", status="timed_out"):
        if lost.attempts < lost.max_attempts:
            with suppress(AlreadyRunning):
                make_report(lost.payload["scheduled"])


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    with engine.begin() as connection:
        migrate.upgrade(connection)
        connection.execute(
            text("CREATE TABLE IF NOT EXISTS report_parts (scheduled TEXT, part INT, attempt INT)")
        )
    scheduler = BlockingScheduler(timezone=UTC)
    scheduler.add_job(start_report, EVERY_MINUTE, misfire_grace_time=GRACE)
    scheduler.add_job(take_over, "interval", seconds=STALLED_AFTER.total_seconds() / 3)
    signal.signal(signal.SIGTERM, lambda *_: scheduler.shutdown())  # ends what it is at
    scheduler.start()


if __name__ == "__main__":
    main()
