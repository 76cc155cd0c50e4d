"""The database that a command works on, and what is said of it: never a password."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ..core import validation
from ..core.errors import ExecutionProblem, InvalidValue
from ..sql.driver.engine import create_sync_engine
from ..sql.driver.url import parse_url, sqlite_file
from ..sql.store import SqlExecutionStore
from ..tracking.manager import ExecutionManager

_UNDEFINED: Final = ("42P01", "42703", "42883")
"""PostgreSQL's codes for a table, a column and a function that is not there."""


@dataclass(frozen=True)
class Database:
    """An engine, and a manager over it."""

    engine: Engine
    manager: ExecutionManager

    @property
    def reader(self) -> Engine:
        """The engine for what only reads: it sees one state of all, and waits for no writer."""
        if self.engine.dialect.name == "sqlite":
            return self.engine.execution_options(sqlite_begin="DEFERRED")
        return self.engine.execution_options(isolation_level="REPEATABLE READ")


@contextmanager
def open_database(url: str) -> Iterator[Database]:
    """Open the database of a URL, which must exist already.

    Raises:
        InvalidValue: it is no URL of ours, or names a file that is not there.
    """
    parsed = parse_url(url)
    embedded = parsed.get_backend_name() == "sqlite"
    file = sqlite_file(parsed) if embedded else None
    if embedded and file is None:
        raise InvalidValue("url", "is in memory, where a command finds nothing: name a file")
    if file is not None and not file.exists():
        raise InvalidValue(
            "url",
            f"names a file that does not exist, {mask_password(url)}: name another with --url or"
            " EXECUTION_CORE_URL, or create it with execution-core migrate",
        )
    engine = create_sync_engine(url)
    try:
        yield Database(engine, ExecutionManager(SqlExecutionStore(engine)))
    finally:
        engine.dispose()


def check_url(url: str) -> None:
    """Refuse a URL that could not be shown without its password, or not at all.

    Raises:
        InvalidValue: it is one of those, or no URL of ours.
    """
    if "@" in (parse_url(url).host or ""):
        raise InvalidValue("url", "holds an @ too many: in a name or a password write it as %40")
    validation.text("url", url, sys.maxsize)


def mask_password(url: str) -> str:
    """Return a URL as it may be shown: neither its password nor its query, which may hold one."""
    parsed = parse_url(url).set(query={})
    driver = parsed.get_backend_name()
    return parsed.set(drivername=driver).render_as_string(hide_password=True)


def explain(error: DBAPIError, url: str) -> str:
    """Say what a database's error means, and what to do about it."""
    says = f"{mask_password(url)}: {short_reason(error)}"
    password = parse_url(url).password
    if password:
        says = says.replace(password, "***")
    return says + (_schema_advice(url) if _is_schema_error(error) else "")


def short_reason(error: BaseException) -> str:
    """Say in a line what is wrong, without the statement that met it."""
    driver = getattr(error, "orig", None) or error
    primary = getattr(getattr(driver, "diag", None), "message_primary", None)
    return " ".join(str(primary or driver or type(error).__name__).split())


def _is_schema_error(error: DBAPIError) -> bool:
    says = str(error.orig)
    return (
        getattr(error.orig, "sqlstate", None) in _UNDEFINED
        or says.startswith("no such")
        or "has no column named" in says
    )


def _schema_advice(url: str) -> str:
    """Say what is to be done about a schema in which something is missing."""
    from .. import migrate  # noqa: PLC0415 - brings Alembic, a third of the time that a start takes

    try:
        at, known = migrate.current(url), migrate.revisions()
    except (DBAPIError, ExecutionProblem):
        return ""  # it cannot be reached any more
    if at == known[0]:
        return "\nSomething of its schema is missing: execution-core doctor says what"
    if at is None or at in known:
        return "\nIts schema is not up to date: run execution-core migrate"
    return "\nA newer version of execution-core made its schema: install that version here as well"
