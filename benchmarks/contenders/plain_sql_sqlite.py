"""Plain SQL over sqlite3: one connection, autocommit, the cache of prepared statements."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import make_url

from execution_core import migrate

from . import plain_sql
from .plain_sql import SQLITE, Row

JSON: Final = ("payload", "result", "error", "metadata", "checkpoints")
TIMES: Final = ("created_at", "updated_at", "started_at", "completed_at", "deadline_at", "due_at")


def version() -> str:
    """Return the name and version that the figures show."""
    return f"sqlite3 {sqlite3.sqlite_version}"


@contextmanager
def lifecycles(url: str, *, synchronous: str = "FULL") -> Iterator[Callable[[int], float]]:
    """Yield a function that runs a number of lifecycles and returns the seconds they took."""
    migrate.upgrade(url)
    connection = sqlite3.connect(make_url(url).database or "", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA synchronous = {synchronous}")

    def execute(statement: str, parameters: tuple[Any, ...]) -> Row:
        found = connection.execute(statement, parameters).fetchall()
        if not found:
            raise RuntimeError("a statement matched no row")
        row = Row(*found[0])
        for name in JSON:
            if (text := getattr(row, name)) is not None:
                setattr(row, name, json.loads(text))
        for name in TIMES:
            if (text := getattr(row, name)) is not None:
                setattr(row, name, datetime.fromisoformat(text).replace(tzinfo=UTC))
        return row

    def run(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            plain_sql.lifecycle(execute, SQLITE)
        return time.perf_counter() - begun

    yield run
    connection.close()
