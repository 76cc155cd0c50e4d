"""The database that a command works on, and what is said of it: never a password."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ..errors import ExecutionProblem, InvalidValue
from ..manager import ExecutionManager
from ..sql.engines import create_sync_engine, database_url
from ..sql.store import SqlExecutionStore


@dataclass(frozen=True)
class Database:
    """An engine, and a manager over it."""

    engine: Engine
    manager: ExecutionManager


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """Open the database of a URL, which must exist already.

    Raises:
        InvalidValue: it is no URL of ours, or names a file that is not there.
    """
    parsed = database_url(url)
    in_file = parsed.get_backend_name() == "sqlite" and parsed.database not in (
        None,
        "",
        ":memory:",
    )
    if in_file and not Path(str(parsed.database)).exists():
        raise InvalidValue(
            "url",
            f"names a file that does not exist, {shown(url)}: name another with --url or"
            " EXECUTION_CORE_URL, or create it with execution-core migrate",
        )
    engine = create_sync_engine(url)
    try:
        yield Database(engine, ExecutionManager(SqlExecutionStore(engine)))
    finally:
        engine.dispose()


def shown(url: str) -> str:
    """Return a URL as it may be shown: neither its password nor its query, which may hold one."""
    parsed = database_url(url).set(query={})
    driver = parsed.get_backend_name()
    return parsed.set(drivername=driver).render_as_string(hide_password=True)


def explained(error: DBAPIError, url: str) -> str:
    """Say what a database's error means, and what to do about it."""
    says = f"{shown(url)}: {str(error.orig).strip()}"
    password = database_url(url).password
    if password:
        says = says.replace(password, "***")
    from .. import migrate  # noqa: PLC0415 - brings Alembic, a third of the time that a start takes

    try:
        current = migrate.check(url)
    except (DBAPIError, ExecutionProblem):
        return says  # it cannot be reached at all
    hint = "" if current else "\nIts schema is not up to date: run execution-core migrate"
    return says + hint
