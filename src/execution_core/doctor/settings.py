"""Check the settings of the database, and sessions that block others."""

import os
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, event, text

from ..sql.driver.engine import begin_sqlite, for_single_statements
from ..sql.schema.indexes import metadata
from .finding import Checks, Finding, format_time, to_finding

MANY_ROWS: Final = 10_000
"""Statistics of smaller tables do not matter: reading them is fast with any plan."""


def sqlite_settings(engine: Engine, *, given: bool) -> list[Finding]:
    """Check the file, and the connections of the application's engine if one is given."""
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
        paths = (Path(file), Path(file).parent)
        read_only = [f"{path} is not writable" for path in paths if not os.access(path, os.W_OK)]
        findings += [
            to_finding("journal_mode", [] if mode == "wal" else [mode], mode),
            to_finding("writable", read_only, "the file and its directory, by this user"),
        ]
    if not given:
        message = "those of a service are checked in it, by doctor.examine(engine)"
        return [*findings, Finding("connections", "ok", message)]
    immediate = event.contains(engine, "begin", begin_sqlite)
    wrong = {
        "foreign keys are off": not foreign_keys,
        "busy_timeout is 0, so a writer fails while another one writes": not busy_timeout,
        "BEGIN IMMEDIATE is not used, so a transaction that reads first can fail": not immediate,
    }
    return [
        *findings,
        to_finding("connections", [message for message, so in wrong.items() if so], "configured"),
        to_finding(
            "synchronous",
            ["a power failure can lose the last transactions"] if synchronous < 2 else [],
            "committed transactions survive a power failure",
        ),
    ]


_SETTINGS: Final = {
    # The accepted values, and the effect of any other value.
    "server_encoding": (("UTF8",), "it cannot store every text"),
    "transaction_isolation": (
        ("read committed",),
        "concurrent calls raise serialization failures instead of waiting",
    ),
    "synchronous_commit": (
        ("on", "remote_apply"),
        "a crash (off) or a failover (local, remote_write) can lose the last transactions",
    ),
    "transaction_read_only": (
        ("off",),
        "this is a standby, or default_transaction_read_only is on",
    ),
    "session_replication_role": (
        ("origin", "local"),
        "triggers do not fire, so no history is written",
    ),
    "fsync": (("on",), "a crash of the machine can corrupt the database"),
    "full_page_writes": (("on",), "a crash of the machine can corrupt pages"),
}


def postgresql_settings(engine: Engine) -> list[Finding]:
    """Check the settings of the server and of the session."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT name, setting FROM pg_settings"))
        found = {row.name: row.setting for row in rows}
    version = found["server_version"]
    old = int(found["server_version_num"]) < 150_000
    findings = [to_finding("server_version", [version] if old else [], version)]
    for name, (accepted, effect) in _SETTINGS.items():
        wrong = [] if found[name] in accepted else [f"{found[name]}: {effect}"]
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
    """Check for idle transactions that hold locks, and for outdated statistics."""
    tables = list(metadata.tables)

    def idle() -> Finding:
        rows = connection.execute(text(_IDLE), {"tables": tables, "patience": patience})
        wrong = [
            f"{pid} ({role}, {application or 'unnamed'}) since {format_time(since)}"
            for pid, role, application, since in rows
        ]
        return to_finding(
            "idle_transactions", wrong, "no session holds locks on these tables for long"
        )

    def statistics() -> Finding:
        rows = connection.execute(text(_STATISTICS), {"tables": tables, "many": MANY_ROWS})
        wrong = [
            f"{table}: {live} rows, {'never analyzed' if unknown else f'{dead} dead rows'}"
            for table, unknown, live, dead in rows
        ]
        return to_finding("statistics", wrong, "up to date")

    return {"idle_transactions": idle, "statistics": statistics}
