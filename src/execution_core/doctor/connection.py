"""The database that is looked at, and left as it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from ..core.errors import InvalidValue
from ..sql.driver.engine import create_sync_engine, for_single_statements
from ..sql.driver.url import parse_url, sqlite_file
from .finding import Finding


@contextmanager
def open_target(target: Engine | URL | str) -> Iterator[Engine]:
    """Give an engine for what is to be looked at."""
    if isinstance(target, Engine):
        for_single_statements(target)  # which refuses what is over another database
        yield target
        return
    if not isinstance(target, str | URL):
        raise InvalidValue("target", f"must be an Engine or a URL, not {type(target).__name__}")
    url = parse_url(target)
    sqlite = url.get_backend_name() == "sqlite"
    # An engine of ours would switch a file to WAL.
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
            f"cannot be read: {error.orig}. See to the rights on the file, and on its folder, where"
            " SQLite keeps what it needs while it reads",
        ) from error
    finally:
        engine.dispose()


def _read_only_url(url: URL) -> URL:
    """Return the URL that leaves a file as it is, and makes none."""
    file = sqlite_file(url)
    if file is None:
        raise InvalidValue("target", "is in memory, and gone at once: pass an Engine")
    if not file.is_file():
        raise InvalidValue(
            "target", f"is a file that does not exist, {file}: execution-core migrate makes it"
        )
    # Who may not write leaves behind the files that WAL needs; who may removes them, and first
    # moves into the database what a crash has left there.
    query = {"mode": "ro" if Path(f"{file}-wal").exists() else "rw", "uri": "true"}
    return URL.create("sqlite+pysqlite", database=f"file:{quote(str(file))}", query=query)


@contextmanager
def open_reader(engine: Engine) -> Iterator[Connection]:
    """Connect only to read; in PostgreSQL rather with an error than with a part of the rows."""
    if engine.dialect.name == "sqlite":
        with for_single_statements(engine).connect() as connection:
            yield connection
        return
    only = engine.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=True)
    with only.connect() as connection:
        # And rather than a wait behind a migration.
        for setting in ("row_security = off", "lock_timeout = '500ms'"):
            connection.execute(text(f"SET LOCAL {setting}"))
        yield connection


def run_check(connection: Connection, check: str, look: Callable[[], Finding]) -> Finding:
    """Make a warning of what the database refuses."""
    sqlite = connection.dialect.name == "sqlite"
    try:
        with nullcontext() if sqlite else connection.begin_nested():
            return look()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        advice = "Mend what else was found, then look again"
        if getattr(error.orig, "sqlstate", None) == "42501":
            advice = "GRANT SELECT on it to this role, or run doctor as the role that migrates"
        says = f"could not be examined: {str(error.orig).splitlines()[0]}"
        return Finding(check, "warning", says, advice)
