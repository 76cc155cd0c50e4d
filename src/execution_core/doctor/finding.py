"""The result of a check: level, message and advice."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

Level = Literal["ok", "warning", "problem"]

MAX_EXAMPLES: Final = 5
"""A finding names at most this many objects."""

_CREATE: Final = "create it with the statement that execution-core migrate --sql prints"
CHECKS: Final[dict[str, tuple[Level, str]]] = {
    # The level and the advice of each check that fails.
    "migrated": ("problem", "Run execution-core migrate"),
    "sqlite_version": ("problem", "Use SQLite 3.38 or newer: the views need it"),
    "journal_mode": (
        "warning",
        "Use connect() or configure_sqlite, which set WAL: readers then do not wait for writers",
    ),
    "writable": (
        "warning",
        "Give workers write permission on the file and, for WAL, on its directory",
    ),
    "connections": ("warning", "Call configure_sqlite(engine) before the engine connects"),
    "synchronous": ("warning", "Execute PRAGMA synchronous = FULL on each connection"),
    "server_version": ("warning", "Use PostgreSQL 15 or newer: older versions are not tested"),
    "transaction_isolation": ("warning", "Set READ COMMITTED for the engine or its role"),
    "synchronous_commit": (
        "warning",
        "Set it to on for this role, unless you accept the loss of the last transactions",
    ),
    "transaction_read_only": (
        "warning",
        "Connect workers to the primary server, with a role that may write",
    ),
    "session_replication_role": ("problem", "ALTER ROLE … RESET session_replication_role"),
    "node": (
        "problem",
        "Connect to the primary: with several hosts, ?host=a,b&target_session_attrs=read-write",
    ),
    "server_encoding": ("problem", "Use a database with ENCODING 'UTF8'"),
    "client_encoding": ("problem", "Use create_engine(url, client_encoding='utf8')"),
    "date_style": ("problem", "ALTER ROLE … SET DateStyle = 'ISO'"),
    "standby": (
        "warning",
        "Connect the standby, or set synchronous_standby_names and synchronous_commit as meant",
    ),
    "wal_size": (
        "warning",
        "End long readers, then write something, or execute PRAGMA wal_checkpoint(TRUNCATE)",
    ),
    "file_mode": ("warning", "chmod 600, and umask 077 for processes that create such files"),
    "fsync": ("warning", "Set fsync = on in the configuration of the server"),
    "full_page_writes": ("warning", "Set full_page_writes = on in the configuration of the server"),
    "tables": ("problem", f"Alter the table; if it is missing, {_CREATE} and restore the rows"),
    "constraints": ("problem", f"VALIDATE CONSTRAINT if it is not valid; otherwise {_CREATE}"),
    "indexes": ("problem", f"REINDEX if it is invalid; otherwise {_CREATE}"),
    "functions": ("problem", f"{_CREATE.capitalize()}; then check the history"),
    "triggers": ("problem", f"ENABLE TRIGGER if it is disabled; otherwise {_CREATE}"),
    "views": ("problem", _CREATE.capitalize()),
    "idle_transactions": (
        "warning",
        "End the session with pg_terminate_backend(pid), and find out why it stays open",
    ),
    "statistics": ("warning", "VACUUM ANALYZE, and check that autovacuum processes these tables"),
    "overdue": ("problem", "Run execution-core sweep, or manager.sweep(), regularly"),
    "stalled": ("problem", "Run execution-core sweep --stalled-after regularly"),
    "unclaimed": ("warning", "Check that workers run and claim this type"),
    "attention": ("warning", "See them, and what to do, with execution-core list --attention"),
    "history_start": (
        "warning",
        "Other SQL inserted them, or a restore lost their history: see docs/migrations.md",
    ),
    "history": (
        "problem",
        "Triggers were disabled or rows were edited: repair the history manually",
    ),
}


@dataclass(frozen=True)
class Finding:
    """What one check found: `finding.level == "problem"`."""

    check: str
    """Its short name, stable across versions."""
    level: Level
    message: str
    advice: str | None = None
    """What to do; None if the level is ok."""


Checks = dict[str, Callable[[], Finding]]


def to_finding(check: str, wrong: list[str], fine: str) -> Finding:
    """Build a finding: ok with the message `fine` if nothing is wrong."""
    if not wrong:
        return Finding(check, "ok", fine)
    level, advice = CHECKS[check]
    more = len(wrong) - MAX_EXAMPLES
    message = "; ".join(wrong[:MAX_EXAMPLES]) + (f"; and {more} more" if more > 0 else "")
    return Finding(check, level, message, advice)


def format_time(time: datetime) -> str:
    """Return a time as text, in UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
