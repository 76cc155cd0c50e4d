"""The schema by Alembic: bring a database up to date, or see where it stands.

The migrations have a version table of their own, `execution_core_version`, and touch only this
library's objects: they live beside the host's own Alembic.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine

from .errors import InvalidValue
from .sql.engines import create_sync_engine

VERSION_TABLE: Final = "execution_core_version"

Target = Engine | Connection | URL | str


def upgrade(target: Target) -> None:
    """Create the schema, or bring it to the newest version: `migrate.upgrade(engine)`.

    On a database that is up to date nothing happens. Processes that call it at once wait for each
    other. With asyncio: `await connection.run_sync(migrate.upgrade)`.

    Args:
        target: an Engine or a URL, then all is committed or nothing; or a Connection, then it
            happens in the caller's transaction, and the caller commits.
    """
    with _connection(target) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def current(target: Target) -> str | None:
    """Return the revision of a database, None before the first: `migrate.current(engine)`."""
    with _connection(target) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()


def check(target: Target) -> bool:
    """Tell whether a database is at the version that this library needs: `migrate.check(engine)`.

    Returns:
        False when `upgrade` has something to do, or when the database is ahead of this library.
    """
    return current(target) == ScriptDirectory.from_config(_config()).get_current_head()


def upgrade_sql(url: URL | str) -> None:
    """Print the SQL of `upgrade` for an empty database: `migrate.upgrade_sql("postgresql://")`.

    Nothing is connected: of the URL only the kind of database counts.
    """
    config = _config()
    config.attributes["url"] = url
    command.upgrade(config, "head", sql=True)


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
def _connection(target: Target) -> Iterator[Connection]:
    match target:
        case Connection():
            yield target
        case Engine():
            with target.begin() as connection:
                yield connection
        case str() | URL():
            engine = create_sync_engine(target)
            try:
                with engine.begin() as connection:
                    yield connection
            finally:
                engine.dispose()
        case _:
            raise InvalidValue(
                "target", f"must be an Engine, a Connection or a URL, not {type(target).__name__}"
            )
