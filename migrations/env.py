"""How Alembic reaches the database, for `migrate.upgrade` and for the `alembic` command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from alembic import context
from sqlalchemy import Connection, func, select, text
from sqlalchemy.schema import CreateSchema

from execution_core.migrate import VERSION_TABLE
from execution_core.sql.driver.engine import create_sync_engine
from execution_core.sql.driver.url import DEFAULT_URL, check_schema, parse_url
from execution_core.sql.schema.indexes import metadata

# An arbitrary constant: concurrent migrations wait for each other.
LOCK: Final = 7_236_815_390_164_227


def include_name(name: str | None, kind: str, parents: Any) -> bool:  # noqa: ARG001 - Alembic's signature
    """Include only this library's tables: the host may have others."""
    return kind != "table" or name in metadata.tables


def include_object(item: Any, *_: Any) -> bool:
    """Leave out what belongs to the other database."""
    dialect = context.get_context().dialect.name
    return bool(item.info.get("only", dialect) == dialect)


SETTINGS: Final[dict[str, Any]] = {
    "target_metadata": metadata,
    "version_table": VERSION_TABLE,
    "include_name": include_name,
    "include_object": include_object,
    "render_as_batch": True,
    "transactional_ddl": True,
    "transaction_per_migration": False,
    "compare_server_default": True,
    "autogenerate_plugins": [
        "alembic.autogenerate.*",
        "~alembic.autogenerate.comments",  # comments are in the migrations only
        "alembic.ext.checkconstraint_byname",
    ],
}


def run(connection: Connection) -> None:
    """Migrate in the connection's transaction; the owner of the connection commits it."""
    if not connection.in_transaction():
        connection.begin()
    if connection.dialect.name == "postgresql":
        # Another upgrade may take long; only a lock on a table has a time limit.
        timeout = connection.scalar(text("SELECT current_setting('lock_timeout')"))
        set_timeout = text("SELECT set_config('lock_timeout', :timeout, true)")
        connection.execute(set_timeout, {"timeout": "0"})
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        connection.execute(set_timeout, {"timeout": timeout})
    elif not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        # Python's driver begins no transaction for DDL: a rollback would leave tables behind.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    with connection.begin_nested(), first_in_search_path(connection):
        context.configure(connection=connection, **settings(connection.dialect.name))
        context.run_migrations()


@contextmanager
def first_in_search_path(connection: Connection) -> Iterator[None]:
    """Let names without a schema mean the given one; create it if it is missing."""
    if schema is None:
        yield
        return
    path = connection.scalar(select(func.current_setting("search_path")))
    # CREATE SCHEMA IF NOT EXISTS needs the right to create one also where it exists.
    known = text("SELECT true FROM pg_namespace WHERE nspname = :schema")
    if not connection.scalar(known, {"schema": schema}):
        connection.execute(CreateSchema(schema))
    set_path = select(func.set_config("search_path", func.quote_ident(schema), True))  # noqa: FBT003
    connection.execute(set_path)
    yield
    connection.execute(select(func.set_config("search_path", path, True)))  # noqa: FBT003


def print_sql(dialect: str) -> None:
    """Print the SQL of the migrations, without a connection."""
    names = {"paramstyle": "named"}  # otherwise a % in a name is printed twice
    context.configure(
        dialect_name=dialect, dialect_opts=names, literal_binds=True, **settings(dialect)
    )
    with context.begin_transaction():
        if schema is not None:
            context.execute(CreateSchema(schema, if_not_exists=True))
            quoted = context.get_context().dialect.identifier_preparer.quote_schema(schema)
            context.execute(text(f"SET LOCAL search_path TO {quoted}".replace(":", "\\:")))
        context.run_migrations()


def settings(dialect: str) -> dict[str, Any]:
    """Return the settings of Alembic for a database."""
    check_schema(schema, dialect)
    return SETTINGS | {"version_table_schema": schema, "execution_core_schema": schema}


schema = context.config.attributes.get("schema", os.environ.get("EXECUTION_CORE_SCHEMA") or None)
url = context.config.attributes.get("url") or os.environ.get("EXECUTION_CORE_URL") or DEFAULT_URL
if context.is_offline_mode():
    print_sql(parse_url(url).get_backend_name())
elif (connection := context.config.attributes.get("connection")) is not None:
    run(connection)
else:
    engine = create_sync_engine(url)
    with engine.begin() as connection:
        run(connection)
    engine.dispose()
