"""Say how a server and the connections to it behave, in words for an operator."""

from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from ..sql.driver.engine import (
    BEHIND_POOLER,
    WAL_SIZE_LIMIT,
    for_single_statements,
    has_iso_dates,
)
from ..sql.driver.session import is_utf8
from .connection import open_target
from .finding import Finding, to_finding
from .settings import sqlite_settings

_PROBE: Final = text("""
    SELECT pg_backend_pid() AS process,
           current_setting('server_version') AS version,
           pg_is_in_recovery() AS is_standby,
           current_setting('transaction_read_only') = 'on' AS is_read_only,
           current_setting('server_encoding') AS encoding,
           current_setting('synchronous_commit') AS synchronous_commit,
           current_setting('synchronous_standby_names') AS synchronous_standbys,
           current_setting('lock_timeout') AS lock_timeout,
           current_setting('statement_timeout') AS statement_timeout,
           count(*) AS standbys,
           -- Only a role with pg_monitor sees the state.
           count(*) FILTER (WHERE coalesce(sync_state, '') NOT IN ('async', 'potential'))
               AS waited_for
      FROM pg_stat_get_wal_senders()
""")


def probe(target: Any) -> list[Finding]:
    """Find out how a database and the connections to it behave: `doctor.probe(engine)`.

    It needs no schema and changes nothing.

    Args:
        target: the application's Engine; or a URL.

    Raises:
        InvalidValue: the target is neither, or its file does not exist or cannot be read.
    """
    with open_target(target) as engine:
        if engine.dialect.name == "sqlite":
            return [*sqlite_settings(engine, given=engine is target), *_probe_file(engine)]
        with for_single_statements(engine).connect() as connection:
            return _probe_server(connection, engine)


def _probe_server(connection: Connection, engine: Engine) -> list[Finding]:
    found = connection.execute(_PROBE).one()
    driver: Any = connection.connection.driver_connection
    is_set = bool(engine.get_execution_options().get(BEHIND_POOLER))
    pooled = is_set or found.process != driver.info.backend_pid
    return [
        Finding("server", "ok", f"PostgreSQL {found.version}, server process {found.process}"),
        _describe_pooler(pooled=pooled, is_set=is_set),
        _describe_node(found),
        *_describe_session(driver, found.encoding),
        _describe_standby(found),
        _describe_prepared(driver, pooled=pooled),
        _describe_timeouts(found, pooled=pooled),
    ]


def _describe_pooler(*, pooled: bool, is_set: bool) -> Finding:
    if not pooled:
        return Finding(
            "pooler",
            "ok",
            "none is visible. For one that passes the numbers of server processes on, add"
            " ?behind_pooler=true to the URL",
        )
    why = "the URL or the engine says so" if is_set else "another process answers than at the login"
    return Finding(
        "pooler",
        "ok",
        f"a pooler, such as PgBouncer: {why}. Nothing is prepared, no server process is ended, and"
        " after a lost connection a write that is not found is unknown",
    )


def _describe_node(found: Any) -> Finding:
    wrong = []
    if found.is_standby:
        wrong = ["a standby, which refuses all writes"]
    elif found.is_read_only:
        wrong = ["a primary whose default_transaction_read_only is on for this role or URL"]
    return to_finding("node", wrong, "a primary that accepts writes")


def _describe_session(driver: Any, encoding: str) -> list[Finding]:
    client = driver.info.parameter_status("client_encoding")
    style = driver.info.parameter_status("DateStyle")
    return [
        to_finding("server_encoding", [] if encoding == "UTF8" else [encoding], encoding),
        to_finding("client_encoding", [] if is_utf8(driver) else [client], client),
        to_finding("date_style", [] if has_iso_dates(driver) else [style], style),
    ]


def _describe_standby(found: Any) -> Finding:
    names, commit = found.synchronous_standbys, found.synchronous_commit
    if not names:
        text = "a commit waits for no standby: a failover can lose the last answered transitions"
        return Finding("standby", "ok", text if found.standbys else "no standby is connected")
    wrong = []
    if commit in ("off", "local"):
        wrong = [f"synchronous_commit is {commit}, so a failover can lose answered transitions"]
    elif not found.waited_for:
        wrong = [f"none is connected, so every commit waits: synchronous_standby_names is {names}"]
    return to_finding("standby", wrong, f"a commit waits for a synchronous standby ({names})")


def _describe_prepared(driver: Any, *, pooled: bool) -> Finding:
    threshold = driver.prepare_threshold
    if pooled:
        message = "none: a pooler would confuse those of two clients"
    elif threshold is None:
        message = "none: prepare_threshold is none"
    else:
        message = f"the driver prepares a statement after {threshold} executions"
    return Finding("prepared_statements", "ok", message)


def _describe_timeouts(found: Any, *, pooled: bool) -> Finding:
    own = "none through a pooler" if pooled else "none, so managers from connect() set their own"
    settings = {name: getattr(found, name) for name in ("lock_timeout", "statement_timeout")}
    shown = [f"{name}: {own if value == '0' else value}" for name, value in settings.items()]
    return Finding("timeouts", "ok", "; ".join(shown))


def _probe_file(engine: Engine) -> list[Finding]:
    with for_single_statements(engine).connect() as connection:
        file = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
    if not file:
        return []
    wal, mode = Path(f"{file}-wal"), Path(file).stat().st_mode & 0o777
    size = wal.stat().st_size if wal.exists() else 0
    shown = f"{size / 2**20:.1f} MB"
    readable = [f"{mode:04o}: other users can read payloads"] if mode & 0o044 else []
    return [
        to_finding("wal_size", [shown] if size > 2 * WAL_SIZE_LIMIT else [], shown),
        to_finding("file_mode", readable, f"{mode:04o}"),
    ]
