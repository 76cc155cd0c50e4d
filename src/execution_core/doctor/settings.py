"""Whether the settings are sound, and nobody stands in the way."""

import os
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, event, text

from ..sql.driver.engine import begin_sqlite, for_single_statements
from ..sql.schema.indexes import metadata
from .finding import Checks, Finding, format_time, to_finding

MANY_ROWS: Final = 10_000
"""A table of fewer rows is read fast, whatever the planner knows of it."""


def sqlite_settings(engine: Engine, *, given: bool) -> list[Finding]:
    """Look at a file, and at the connections of the host's own engine."""
    with for_single_statements(engine).connect() as connection:
        version = connection.execute(text("SELECT sqlite_version()")).scalar_one()
        file = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
        mode, foreign_keys, busy_timeout, synchronous = (
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        )
    old = tuple(map(int, version.split("."))) < (3, 38)
    findings = [to_finding("sqlite_version", [version] if old else [], version)]
    if file:
        shut = [f"{p} is not" for p in (Path(file), Path(file).parent) if not os.access(p, os.W_OK)]
        findings += [
            to_finding("journal_mode", [] if mode == "wal" else [mode], mode),
            to_finding("writable", shut, "the file and its folder, by this user"),
        ]
    if not given:
        says = (
            "a URL has none to check, an Engine has; connect() and configure_sqlite make sound ones"
        )
        return [*findings, Finding("connections", "ok", says)]
    wrong = {
        "foreign keys are off": not foreign_keys,
        "a writer does not wait for another": not busy_timeout,
        "who reads and then writes cannot wait": not event.contains(engine, "begin", begin_sqlite),
    }
    return [
        *findings,
        to_finding("connections", [says for says, so in wrong.items() if so], "sound"),
        to_finding(
            "synchronous",
            ["a loss of power may take the last moves"] if synchronous < 2 else [],
            "what is acknowledged survives a loss of power",
        ),
    ]


_SETTINGS: Final = {
    # The values that are sound, and what it means when it has another.
    "transaction_isolation": (("read committed",), "calls that meet raise where they would wait"),
    "synchronous_commit": (
        ("on", "remote_apply"),
        "the last moves may be lost: off, in a crash; else, when a standby takes over",
    ),
    "transaction_read_only": (("off",), "a standby, or default_transaction_read_only is on"),
    "session_replication_role": (("origin", "local"), "no trigger fires, so no history is written"),
    "fsync": (("on",), "a crash of the machine may destroy the database"),
    "full_page_writes": (("on",), "a crash of the machine may destroy pages"),
}


def postgresql_settings(engine: Engine) -> list[Finding]:
    """Look at what is set where the engine connects."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT name, setting FROM pg_settings"))
        found = {row.name: row.setting for row in rows}
    version = found["server_version"]
    old = int(found["server_version_num"]) < 150_000
    findings = [to_finding("server_version", [version] if old else [], version)]
    for name, (sound, means) in _SETTINGS.items():
        wrong = [] if found[name] in sound else [f"{found[name]}: {means}"]
        findings.append(to_finding(name, wrong, found[name]))
    return findings


_IDLE: Final = """
SELECT DISTINCT activity.pid, usename, application_name, state_change
  FROM pg_stat_activity AS activity JOIN pg_locks AS held USING (pid)
 WHERE state LIKE 'idle in transaction%'
   AND state_change < clock_timestamp() - :patience * interval '1 millisecond'
   AND relation IN (SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) AS name)
   AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
 ORDER BY state_change
"""
_STATISTICS: Final = """
SELECT relname, coalesce(last_analyze, last_autoanalyze) IS NULL, n_live_tup, n_dead_tup
  FROM pg_stat_user_tables
 WHERE relid IN (SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) AS name)
   AND (coalesce(last_analyze, last_autoanalyze) IS NULL AND n_live_tup >= :many
        OR n_dead_tup >= :many AND n_dead_tup > n_live_tup)
"""


def postgresql_activity(connection: Connection, patience: int) -> Checks:
    """Look at who holds the tables, and what is known of them."""
    tables = list(metadata.tables)

    def idle() -> Finding:
        rows = connection.execute(text(_IDLE), {"tables": tables, "patience": patience})
        wrong = [
            f"{pid} ({role}, {application or 'unnamed'}) since {format_time(since)}"
            for pid, role, application, since in rows
        ]
        return to_finding("idle_transactions", wrong, "none holds these tables for long")

    def statistics() -> Finding:
        rows = connection.execute(text(_STATISTICS), {"tables": tables, "many": MANY_ROWS})
        wrong = [
            f"{table}, {live} rows, {'never analysed' if unknown else f'{dead} dead ones beside'}"
            for table, unknown, live, dead in rows
        ]
        return to_finding("statistics", wrong, "what the planner needs is known")

    return {"idle_transactions": idle, "statistics": statistics}
