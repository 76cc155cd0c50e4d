"""The schema by Alembic: bring a database up to date, or see where it stands.

The migrations have a version table of their own, `execution_core_version`, and touch only this
library's objects: they live beside the host's own Alembic.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Final, TextIO

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, SingletonThreadPool

from .core.errors import InvalidValue
from .sql.driver.engine import create_sync_engine, for_single_statements

VERSION_TABLE: Final = "execution_core_version"

_running: Final = threading.Lock()
_running_in: Final[list[int]] = []

Target = Engine | Connection | URL | str


def upgrade(target: Target) -> None:
    """Create the schema, or bring it to the newest version: `migrate.upgrade(engine)`.

    On a database that is up to date nothing happens. Processes and threads that call it at once
    wait for each other. With asyncio: `await connection.run_sync(migrate.upgrade)`.

    Args:
        target: an Engine or a URL, then all is committed or nothing; or a Connection, then it
            happens in the caller's transaction, and the caller commits. To wait for others, that
            transaction must be READ COMMITTED.

    Raises:
        InvalidValue: it is none of these, or in AUTOCOMMIT, or a newer version of this library
            made the schema.
        RuntimeError: another task of the same thread is about it.
    """
    with _exclusive(), _engine_or_connection(target) as bind, _transaction(bind) as connection:
        config, at = _config(), current(connection)
        if at is not None and at not in revisions():
            raise InvalidValue(
                "target", f"is at revision {at}, which a newer version of execution-core made"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def current(target: Target) -> str | None:
    """Return the revision of a database, None before the first: `migrate.current(engine)`."""
    with _engine_or_connection(target) as bind, _reading(bind) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()


def check(target: Target) -> bool:
    """Tell whether a database is at the version that this library needs: `migrate.check(engine)`.

    Returns:
        False when `upgrade` has something to do, or when a newer version of this library made it.
    """
    return current(target) == revisions()[0]


def upgrade_sql(url: URL | str, output: TextIO | None = None) -> None:
    """Print the SQL of `upgrade` for an empty database: `migrate.upgrade_sql("postgresql://")`.

    Nothing is connected: of the URL only the kind of database counts. It goes to standard output,
    or into `output`.
    """
    with _exclusive():
        config = _config()
        config.output_buffer = output or sys.stdout
        config.attributes["url"] = url
        command.upgrade(config, "head", sql=True)


def revisions() -> list[str]:
    """Return the revisions that this version knows, the newest first: `migrate.revisions()[0]`."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def scripts() -> Path:
    """Return the folder of the migrations: in the installed package, or in the repository."""
    package = Path(__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parents[1] / "migrations"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    return config


@contextmanager
def _engine_or_connection(target: Target) -> Iterator[Engine | Connection]:
    if isinstance(target, Engine | Connection):
        yield target
    elif isinstance(target, str | URL):
        engine = create_sync_engine(target)
        if isinstance(engine.pool, SingletonThreadPool):
            raise InvalidValue("target", "is in memory, and gone at once: pass an Engine")
        try:
            yield engine
        finally:
            engine.dispose()
    else:
        raise InvalidValue(
            "target", f"must be an Engine, a Connection or a URL, not {type(target).__name__}"
        )


def _transaction(bind: Engine | Connection) -> AbstractContextManager[Connection]:
    if isinstance(bind, Engine):
        # Elsewhere than in READ COMMITTED, who waited for the lock would not see what it was for.
        level = {"isolation_level": "READ COMMITTED"} if bind.dialect.name == "postgresql" else {}
        return bind.execution_options(**level).begin()
    if getattr(bind.connection.driver_connection, "autocommit", None) is True:
        raise InvalidValue("target", "is a Connection in AUTOCOMMIT: a migration is a transaction")
    return nullcontext(bind)


def _reading(bind: Engine | Connection) -> AbstractContextManager[Connection]:
    return for_single_statements(bind).connect() if isinstance(bind, Engine) else nullcontext(bind)


@contextmanager
def _exclusive() -> Iterator[None]:
    """Alembic keeps the migration that runs in globals: one at a time in a process."""
    if _running.locked() and _running_in == [threading.get_ident()]:
        raise RuntimeError("another task of this thread migrates: await one before the other")
    with _running:
        _running_in[:] = [threading.get_ident()]
        try:
            yield
        finally:
            _running_in.clear()
