"""Database URLs: which are accepted, and the file that one of SQLite names."""

from pathlib import Path
from typing import Final
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ...core.errors import InvalidValue

PSYCOPG: Final = ("psycopg", "psycopg_async")
DEFAULT_URL: Final = "sqlite:///executions.db"


def parse_url(url: str | URL, sqlite: str = "pysqlite") -> URL:
    """Return the URL with the driver that this library is tested with, where it names none.

    Raises:
        InvalidValue: it is no URL of SQLite, or of PostgreSQL with psycopg.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # From None: SQLAlchemy's own message may repeat the URL, password included.
        raise InvalidValue("url", f"is no database URL, such as {DEFAULT_URL}") from None
    backend, _, driver = parsed.drivername.partition("+")
    if backend in ("postgresql", "postgres") and driver in ("", *PSYCOPG):
        return parsed.set(drivername=f"postgresql+{driver or PSYCOPG[0]}")
    if backend == "sqlite" and driver in ("", "pysqlite", "aiosqlite"):
        if parsed.host:
            raise InvalidValue("url", "needs a third slash before the file: sqlite:///file.db")
        return parsed.set(drivername=f"sqlite+{sqlite}")
    raise InvalidValue(
        "url",
        f"must begin with sqlite:/// or postgresql+psycopg://, not {parsed.drivername}://",
    )


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite URL, which may be `file:` with options; None: it is in memory."""
    name = url.database or ":memory:"
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:"))
    return None if name == ":memory:" or url.query.get("mode") == "memory" else Path(name)
