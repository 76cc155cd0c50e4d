"""Execute statements through SQLAlchemy: in a host's transaction, and where a host listens."""

import logging
from typing import Any

from sqlalchemy import Connection, Engine

from ..statements.queries import Query, Rows
from .engine import begin_sqlite
from .session import Backend, check_date_style, check_encoding
from .url import PSYCOPG


def execute_via_sqlalchemy(
    connection: Connection,
    query: Query,
    schema: str | None = None,
    backend: Backend | None = None,
) -> Rows:
    """Execute a query with SQLAlchemy, in the current transaction of the connection."""
    host = connection.get_execution_options().get("schema_translate_map") or {}
    schema = schema or host.get(None)
    options = {
        # Fetch all rows at once, also if the host's engine streams.
        "stream_results": False,
        "yield_per": None,
        # SQLAlchemy caches a statement for all maps, and needs the same keys in each of them.
        "schema_translate_map": {None: schema} if schema else None,
    }
    driver: Any = connection.connection.driver_connection
    if connection.dialect.driver in PSYCOPG:
        check_encoding(driver)
        check_date_style(driver)
    threshold = getattr(driver, "prepare_threshold", None)
    if backend is not None and backend.pooled:
        driver.prepare_threshold = None
    try:
        result = connection.execute(query.statement, query.parameters, execution_options=options)
        return result.all()
    finally:
        if backend is not None and backend.pooled:
            driver.prepare_threshold = threshold


def must_use_sqlalchemy(engine: Engine) -> bool:
    """Return whether the host listens to events, logs statements or translates schemas."""
    events, dialect_events = engine.dispatch, engine.dialect.dispatch
    return bool(
        events.before_cursor_execute
        or events.after_cursor_execute
        or events.before_execute
        or events.after_execute
        or events.engine_connect
        or events.commit
        or (events.begin and any(each is not begin_sqlite for each in events.begin))
        or dialect_events.do_execute
        or dialect_events.handle_error
        or engine.logger.isEnabledFor(logging.INFO)
        or "schema_translate_map" in engine.get_execution_options()
    )
