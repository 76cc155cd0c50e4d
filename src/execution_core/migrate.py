"""Create, upgrade and check the schema with Alembic.

The migrations have their own version table, `execution_core_version`, and change only this
library's objects. So they do not interfere with migrations of the host.
"""

import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Final, TextIO

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, SingletonThreadPool, func

from .core import validation
from .core.errors import InvalidValue
from .sql.driver.engine import (
    MAX_TIMEOUT,
    MIGRATION_LOCK_TIMEOUT,
    create_sync_engine,
    for_single_statements,
)
from .sql.driver.url import check_schema
from .sql.schema.tables import metadata
from .sql.schema.views import views_metadata

VERSION_TABLE: Final = "execution_core_version"

logger: Final = logging.getLogger("execution_core")

_lock: Final = threading.Lock()
_lock_owner: Final[list[int]] = []
"""The id of the thread that holds the lock, if any."""

Target = Engine | Connection | URL | str


def upgrade(
    target: Target,
    *,
    schema: str | None = None,
    lock_timeout: timedelta = MIGRATION_LOCK_TIMEOUT,
) -> None:
    """Create the schema, or upgrade it to the newest revision: `migrate.upgrade(engine)`.

    Nothing is changed if the schema is up to date, or if a later version has upgraded it: see
    `is_newer`. Concurrent processes and threads wait for each other. With asyncio:
    `await connection.run_sync(migrate.upgrade)`.

    Args:
        target: an Engine or a URL: the upgrade is one transaction. Or a Connection: the upgrade is
            part of the caller's transaction, and the caller commits. That transaction must be READ
            COMMITTED to wait for concurrent upgrades.
        schema: the schema of PostgreSQL for all tables, the version table too; it is created if it
            is missing. By default the first one of the `search_path`.
        lock_timeout: how long to wait for a lock on a table of PostgreSQL. Everything that needs
            the table waits meanwhile. Not for a Connection, which has a timeout of its own.

    Raises:
        OperationalError: another session held a lock for longer. Nothing was changed.
        InvalidValue: the target is none of these, or is a Connection in AUTOCOMMIT, or its schema
            is at a revision with which this version does not work, or another application has
            tables of these names there. Nothing was changed.
        RuntimeError: another task of the same thread is upgrading.
    """
    with _exclusive(), _engine_or_connection(target) as bind, _transaction(bind) as connection:
        check_schema(schema, connection.dialect.name)
        if isinstance(bind, Engine) and bind.dialect.name == "postgresql":
            timeout = validation.duration("lock_timeout", lock_timeout)
            milliseconds = str(min(timeout, MAX_TIMEOUT) // timedelta(milliseconds=1))
            connection.execute(func.set_config("lock_timeout", milliseconds, True))  # noqa: FBT003
        config = _config(schema)
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            # Asked only now, because another version may have upgraded while this one waited.
            revision = current(connection, schema=schema)
            if revision is None or revision in revisions():
                raise
            if not is_newer(revision):
                raise InvalidValue(
                    "target",
                    f"is at revision {revision}, with which this version of execution-core does not"
                    " work: install the version that created it",
                ) from error
            logger.warning(
                "The schema is at %s, which a newer version of execution-core created. This version"
                " works with it and has not changed it.",
                revision,
            )


def current(target: Target, *, schema: str | None = None) -> str | None:
    """Return the revision of a database, or None without tables: `migrate.current(engine)`."""
    with _engine_or_connection(target) as bind, _connection(bind) as connection:
        check_schema(schema, connection.dialect.name)
        options = {"version_table": VERSION_TABLE, "version_table_schema": schema}
        return MigrationContext.configure(connection, opts=options).get_current_revision()


def check(target: Target, *, schema: str | None = None) -> bool:
    """Return whether this version works with the schema: `migrate.check(engine)`.

    Returns:
        True if the schema is up to date, or if a later version has upgraded it: see `is_newer`.
        False if `upgrade` is necessary, or if this version does not work with the schema.
    """
    revision = current(target, schema=schema)
    return revision == revisions()[0] or is_newer(revision)


def is_newer(revision: str | None) -> bool:
    """Return whether a later version made a revision, and this one works with it.

    During a rolling deployment, processes of two versions use one schema. A revision with which the
    versions before it do not work has a name of another form.

    Example: `migrate.is_newer(migrate.current(engine))`
    """
    if revision is None or not re.fullmatch(r"execution_core_\d{4}", revision):
        return False
    return revision > revisions()[0]


def owns(name: str | None) -> bool:
    """Return whether a table or view is one of this library's: `migrate.owns("executions")`.

    Example, for the `env.py` of the host's own Alembic:
    `include_name=lambda name, kind, parents: kind != "table" or not migrate.owns(name)`
    """
    return name in {VERSION_TABLE, *metadata.tables, *views_metadata.tables}


def upgrade_sql(url: URL | str, output: TextIO | None = None, *, schema: str | None = None) -> None:
    """Print the SQL of `upgrade` for an empty database: `migrate.upgrade_sql("postgresql://")`.

    It does not connect.

    Args:
        url: only its kind of database is used: `postgresql://` or `sqlite://`.
        output: where to write the SQL; by default standard output.
        schema: as for `upgrade`; by default `public`.
    """
    with _exclusive():
        config = _config(schema)
        config.output_buffer = output or sys.stdout
        config.attributes["url"] = url
        command.upgrade(config, "head", sql=True)


def revisions() -> list[str]:
    """Return the revisions of this version, the newest first: `migrate.revisions()[0]`."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def scripts() -> Path:
    """Return the folder of the migrations, in the installed package or in the repository."""
    package = Path(__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parents[1] / "migrations"


def _config(schema: str | None = None) -> Config:
    config = Config()
    config.attributes["schema"] = schema
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    return config


@contextmanager
def _engine_or_connection(target: Target) -> Iterator[Engine | Connection]:
    if isinstance(target, Engine | Connection):
        yield target
    elif isinstance(target, str | URL):
        engine = create_sync_engine(target)
        if isinstance(engine.pool, SingletonThreadPool):
            raise InvalidValue(
                "target",
                "is in memory and would be gone afterwards: pass an Engine instead of a URL",
            )
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
        # In a stricter level, a transaction that waited for the lock would not see the upgrade.
        level = {"isolation_level": "READ COMMITTED"} if bind.dialect.name == "postgresql" else {}
        return bind.execution_options(**level).begin()
    if getattr(bind.connection.driver_connection, "autocommit", None) is True:
        raise InvalidValue(
            "target", "is a Connection in AUTOCOMMIT: a migration needs a transaction"
        )
    return nullcontext(bind)


def _connection(bind: Engine | Connection) -> AbstractContextManager[Connection]:
    return for_single_statements(bind).connect() if isinstance(bind, Engine) else nullcontext(bind)


@contextmanager
def _exclusive() -> Iterator[None]:
    """Allow one migration at a time in a process: Alembic keeps the running one in globals."""
    if _lock_owner == [threading.get_ident()]:  # waiting would never end
        raise RuntimeError(
            "Cannot migrate: another task of this thread is migrating. Await it first."
        )
    with _lock:
        _lock_owner[:] = [threading.get_ident()]
        try:
            yield
        finally:
            _lock_owner.clear()
