"""Open the database that is checked, without changing it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError

from ..core.errors import InvalidValue
from ..sql.driver.engine import create_sync_engine, for_single_statements
from ..sql.driver.url import parse_url, sqlite_file
from .finding import Finding


@contextmanager
def open_target(target: Engine | URL | str) -> Iterator[Engine]:
    """Yield an engine for the target."""
    if isinstance(target, Engine):
        for_single_statements(target)  # refuses an engine of another database
        yield target
        return
    if not isinstance(target, str | URL):
        raise InvalidValue("target", f"must be an Engine or a URL, not {type(target).__name__}")
    url = parse_url(target)
    sqlite = url.get_backend_name() == "sqlite"
    # The library's own engine would switch the file to WAL.
    engine = (
        create_engine(_read_only_url(url), poolclass=NullPool)
        if sqlite
        else create_sync_engine(url)
    )
    try:
        yield engine
    except DBAPIError as error:
        if not sqlite:
            raise
        raise InvalidValue(
            "target",
            f"cannot be read: {error.orig}. Check the permissions of the file and of its directory:"
            " in WAL mode SQLite creates files there even to read",
        ) from error
    finally:
        engine.dispose()


def _read_only_url(url: URL) -> URL:
    """Return a URL that neither changes nor creates the file."""
    file = sqlite_file(url)
    if file is None:
        raise InvalidValue(
            "target",
            "is an in-memory database, which every connection creates for itself: pass an Engine",
        )
    if not file.is_file():
        raise InvalidValue(
            "target",
            f"names a file that does not exist, {file}: create it with execution-core migrate",
        )
    # Leave the directory as it is: on closing, mode=rw checkpoints and removes a WAL that a crash
    # left, and mode=ro leaves the files behind that it created.
    query = {"mode": "ro" if Path(f"{file}-wal").exists() else "rw", "uri": "true"}
    return URL.create("sqlite+pysqlite", database=f"file:{quote(str(file))}", query=query)


@contextmanager
def open_reader(engine: Engine, schema: str | None) -> Iterator[Connection]:
    """Open a read-only connection.

    On PostgreSQL, row-level security raises an error instead of hiding rows.
    """
    if engine.dialect.name == "sqlite":
        with for_single_statements(engine).connect() as connection:
            yield connection
        return
    only = engine.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=True)
    with only.connect() as connection:
        # lock_timeout: do not wait for a running migration.
        for setting in ("row_security = off", "lock_timeout = '500ms'"):
            connection.execute(text(f"SET LOCAL {setting}"))
        if schema is not None:
            path = func.set_config("search_path", func.quote_ident(schema), True)  # noqa: FBT003
            connection.execute(select(path))
        yield connection


def run_check(connection: Connection, name: str, check: Callable[[], Finding]) -> Finding:
    """Run a check; return a warning if the database refuses one of its queries."""
    sqlite = connection.dialect.name == "sqlite"
    try:
        with nullcontext() if sqlite else connection.begin_nested():
            return check()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        advice = "Repair the other findings, or wait for a running migration; then run doctor again"
        if getattr(error.orig, "sqlstate", None) == "42501":
            advice = "GRANT SELECT on it to this role, or run doctor as the role that migrates"
        message = f"could not be checked: {str(error.orig).splitlines()[0]}"
        return Finding(name, "warning", message, advice)
