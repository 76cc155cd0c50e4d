"""What a check finds, how bad that is, and what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

Level = Literal["ok", "warning", "problem"]

EXAMPLES: Final = 5
"""Of what is wrong with one thing, so much is named."""

_ANEW: Final = "make it as execution-core migrate --sql prints it"
CHECKS: Final[dict[str, tuple[Level, str]]] = {
    # How bad it is when it is not as it should be, and what to do then.
    "migrated": ("problem", "Run execution-core migrate"),
    "sqlite_version": ("problem", "Use SQLite 3.38 or newer: the views need it"),
    "journal_mode": ("warning", "Let connect() or configure_sqlite turn to WAL: readers wait less"),
    "writable": ("warning", "Give workers the right to write; for WAL, in the folder too"),
    "connections": ("warning", "Give the engine to configure_sqlite before it connects"),
    "synchronous": ("warning", "Let each connection execute PRAGMA synchronous = FULL"),
    "server_version": ("warning", "Use PostgreSQL 15 or newer: older ones are not tested"),
    "transaction_isolation": ("warning", "Let the engine, or its role, say READ COMMITTED"),
    "synchronous_commit": ("warning", "Set it to on for this role, unless that is meant"),
    "transaction_read_only": (
        "warning",
        "Let workers connect to the primary, in a role that writes",
    ),
    "session_replication_role": ("problem", "ALTER ROLE … RESET session_replication_role"),
    "fsync": ("warning", "Set fsync = on in the server's configuration"),
    "full_page_writes": ("warning", "Set full_page_writes = on in the server's configuration"),
    "tables": ("problem", f"Alter it, or {_ANEW}, and copy the rows"),
    "constraints": ("problem", f"VALIDATE CONSTRAINT what is not valid; else drop it, and {_ANEW}"),
    "indexes": ("problem", f"REINDEX what is invalid; else drop it, and {_ANEW}"),
    "functions": ("problem", f"CREATE OR REPLACE: {_ANEW}; look at the history"),
    "triggers": ("problem", f"ENABLE TRIGGER what is disabled; else drop it, and {_ANEW}"),
    "views": ("problem", f"Drop it, and {_ANEW}"),
    "idle_transactions": ("warning", "pg_terminate_backend(pid) ends it; see what left it open"),
    "statistics": ("warning", "VACUUM ANALYZE, and see that autovacuum gets to these tables"),
    "overdue": ("problem", "Let execution-core sweep, or manager.sweep(), run regularly"),
    "stalled": ("problem", "Let execution-core sweep --stalled-after run regularly"),
    "unclaimed": ("warning", "See that workers run, and claim this type"),
    "history": (
        "problem",
        "Triggers were off, or somebody edited rows: only a hand can mend it, from what it knows",
    ),
}


@dataclass(frozen=True)
class Finding:
    """What one check found: `finding.level == "problem"`."""

    check: str
    """Its short name, the same in every version."""
    level: Level
    message: str
    advice: str | None = None
    """What to do, unless all is well."""


Checks = dict[str, Callable[[], Finding]]


def to_finding(check: str, wrong: list[str], fine: str) -> Finding:
    """Return what a check found of one or several things, of which some may be wrong."""
    if not wrong:
        return Finding(check, "ok", fine)
    level, advice = CHECKS[check]
    more = len(wrong) - EXAMPLES
    says = "; ".join(wrong[:EXAMPLES]) + (f"; and {more} more" if more > 0 else "")
    return Finding(check, level, says, advice)


def format_time(time: datetime) -> str:
    """Return a time as it is shown."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
