"""Database URLs: parse and check them, and find the file of a SQLite URL."""

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ...core import validation
from ...core.errors import InvalidValue

PSYCOPG: Final = ("psycopg", "psycopg_async")
ASYNCPG: Final = "asyncpg"
_SEVERAL_HOSTS: Final = re.compile(
    r"(postgres[^/]*//(?:[^/?]*@)?)([^/?@]+,[^/?@]+)([/?].*|$)", re.DOTALL
)
DEFAULT_URL: Final = "sqlite:///executions.db"
MAX_SCHEMA: Final = 63
"""In bytes: PostgreSQL would shorten a longer name."""


def parse_url(url: str | URL, sqlite: str = "pysqlite") -> URL:
    """Return the URL with the driver of this library; `sqlite` is the driver to use for SQLite.

    Raises:
        InvalidValue: the URL is neither of SQLite nor of PostgreSQL with psycopg.
    """
    if isinstance(url, str) and (several := _SEVERAL_HOSTS.match(url)):
        # The form of libpq; SQLAlchemy has one of its own.
        start, hosts, end = several.groups()
        given = "&".join(f"host={host}" for host in hosts.split(","))
        url = f"{start}{end}{'&' if '?' in end else '?'}{given}"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        # From None: SQLAlchemy's own message may repeat the URL, password included.
        reason = "its port is not a number" if isinstance(error, ValueError) else "it lacks ://"
        raise InvalidValue(
            "url", f"is not a valid database URL, such as {DEFAULT_URL}: {reason}"
        ) from None
    if "@" in (parsed.host or ""):  # a part of the password, which messages would show
        raise InvalidValue("url", "contains an unescaped @: write %40 in a name or a password")
    backend, _, driver = parsed.drivername.partition("+")
    if backend in ("postgresql", "postgres") and driver in ("", *PSYCOPG):
        return parsed.set(drivername=f"postgresql+{driver or PSYCOPG[0]}")
    if backend == "sqlite" and driver in ("", "pysqlite", "aiosqlite"):
        if parsed.host:
            raise InvalidValue("url", "needs a third slash before the file: sqlite:///file.db")
        return parsed.set(drivername=f"sqlite+{sqlite}")
    advice = ": this uses psycopg. Give AsyncSqlExecutionStore an engine of yours for asyncpg"
    raise InvalidValue(
        "url",
        f"must begin with sqlite:/// or postgresql+psycopg://, not {parsed.drivername}://"
        f"{advice if driver == ASYNCPG else ''}",
    )


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite URL, also of one with `file:` and options; None if in memory."""
    name = url.database or ":memory:"
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:"))
    return None if name == ":memory:" or url.query.get("mode") == "memory" else Path(name)


def check_schema(schema: str | None, backend: str) -> str | None:
    """Return the name of a schema of PostgreSQL, or None for the first one of the search_path.

    Raises:
        InvalidValue: the database is SQLite, or cannot have a schema of this name.
    """
    if schema is None:
        return None
    if backend == "sqlite":
        raise InvalidValue(
            "schema",
            "is for PostgreSQL alone: on SQLite use a file of its own instead. No transaction can"
            " then cover both files",
        )
    return schema_name(schema)


def schema_name(name: str) -> str:
    """Return a name that a schema of PostgreSQL can have.

    Raises:
        InvalidValue: it is empty, too long, reserved, or contains U+0000.
    """
    name = validation.name("schema", name)
    if len(name.encode()) > MAX_SCHEMA:
        raise InvalidValue("schema", f"must have at most {MAX_SCHEMA} bytes")
    if name == "$user" or name.startswith("pg_"):
        raise InvalidValue("schema", "must not be $user or begin with pg_: PostgreSQL reserves it")
    return name
