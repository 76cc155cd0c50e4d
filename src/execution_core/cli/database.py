"""Open the database of a command, and explain its errors without any password."""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from sqlalchemy import URL, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..core.errors import ExecutionNotFound, ExecutionProblem, InvalidValue
from ..sql.driver.engine import create_sync_engine
from ..sql.driver.url import DEFAULT_URL, check_schema, parse_url, sqlite_file
from ..sql.recovery.verify_commit import is_schema_error
from ..sql.store import SqlExecutionStore
from ..tracking.manager import ExecutionManager
from . import queries
from .output import end_sentence

ADVICE: Final = {
    "database is locked": "Another process holds the write lock: try again, and end transactions"
    " that stay open, for example in a SQLite shell",
    "readonly database": "This user may not write: check the permissions of the file and of its"
    " directory, or a mode=ro in the URL",
    "read-only transaction": "The server is a standby, or default_transaction_read_only is on for"
    " this role: connect to the primary server with a role that may write",
    "due to lock timeout": "Another session holds a lock on a table or a row: find it with"
    " execution-core doctor, end it, and try again",
    "unable to open database file": "The file does not exist, or this user may not open it: is its"
    " disk mounted?",
    "QueuePool limit": "All connections of the pool are in use: close unused ones, or increase"
    " pool_size",
}
"""The likely cause of an error and what to do, by a part of the driver's message."""
REFUSED, NOT_FOUND = 1, 3
EXPLAINED: Final = (ExecutionProblem, SQLAlchemyError, ValueError)
"""The errors for which `explain_failure` has a message."""


@dataclass(frozen=True)
class Database:
    """An engine and its manager."""

    engine: Engine
    manager: ExecutionManager
    options: str = ""
    """What names it in an advised command: nothing if the environment does."""

    def command(self, words: str) -> str:
        """Return a command to advise, for this database: `database.command(f"show {id}")`."""
        return f"execution-core {words}{self.options}"

    @property
    def reader(self) -> Engine:
        """The engine for reading: one snapshot per transaction, without waiting for writers."""
        if self.engine.dialect.name == "sqlite":
            return self.engine.execution_options(sqlite_begin="DEFERRED")
        return self.engine.execution_options(isolation_level="REPEATABLE READ")

    def resolve_id(self, given: str) -> str:
        """Return the only id that starts with the given prefix."""
        with self.reader.connect() as connection:
            return queries.resolve_id(connection, given)


@contextmanager
def open_database(
    url: str, schema: str | None, *, may_be_missing: bool = False
) -> Iterator[Database]:
    """Open the database of a URL. PostgreSQL is not contacted yet.

    A SQLite file must exist, now unless it `may_be_missing`, and whenever a connection is opened.
    """
    parsed = parse_url(url)
    schema = check_schema(schema, parsed.get_backend_name())
    opened: str | URL = url
    if parsed.get_backend_name() == "sqlite":
        if (file := sqlite_file(parsed)) is None:
            raise InvalidValue(
                "url", "is an in-memory database, empty in each process: name a file"
            )
        if not (file.exists() or may_be_missing):
            raise InvalidValue(
                "url",
                f"names a file that does not exist, {mask_password(url)}: is its disk mounted? Name"
                " another file with --url or EXECUTION_CORE_URL, or create it with execution-core"
                " migrate",
            )
        # Otherwise SQLite would create an empty database in place of a file that was moved.
        named = parsed.set(database=f"file:{quote(str(file))}")
        opened = named.update_query_dict({"uri": "true"} | {"mode": "rw"} | dict(parsed.query))
    options = {"schema_translate_map": {None: schema}} if schema else {}
    engine = create_sync_engine(opened, bounded=True, execution_options=options)
    try:
        manager = ExecutionManager(SqlExecutionStore(engine))
        yield Database(engine, manager, _options(url, parsed, schema))
    finally:
        engine.dispose()


def _options(url: str, parsed: URL, schema: str | None) -> str:
    """Return the options of a command for a database, or what to do if it has a password."""
    options = ""
    if schema is not None and schema != os.environ.get("EXECUTION_CORE_SCHEMA"):
        options = f" --schema {shlex.quote(schema)}"
    if url == (os.environ.get("EXECUTION_CORE_URL") or DEFAULT_URL):
        return options
    if parsed.password is None and not {"password", "sslpassword"} & {*parsed.query}:
        return f"{options} --url {shlex.quote(url)}"
    return f"{options}, with {mask_password(url)}, password included, as EXECUTION_CORE_URL"


def mask_password(url: str) -> str:
    """Return a URL without its password and without its query, which may contain one."""
    parsed = parse_url(url).set(query={})
    driver = parsed.get_backend_name()
    return parsed.set(drivername=driver).render_as_string(hide_password=True)


def explain_failure(error: Exception, url: str, schema: str | None) -> tuple[int, str]:
    """Return the exit code and the message for an error of a command."""
    code = NOT_FOUND if isinstance(error, ExecutionNotFound) else REFUSED
    if isinstance(error, ExecutionProblem):
        message = f"{error.code}: {error}"
    elif isinstance(error, SQLAlchemyError):
        message = explain(error, url, schema)
    else:  # manual SQL stored February 30, or a number beyond a float
        message = f"a stored value is invalid: {error}. Correct the row with manual SQL"
    return code, f"execution-core: {message}"


def explain(error: SQLAlchemyError, url: str, schema: str | None = None) -> str:
    """Return the message for a database error: where, why, the likely cause and what to do."""
    message = f"{mask_password(url)}: {short_reason(error)}"
    missing = isinstance(error, DBAPIError) and is_schema_error(error)
    return message + (_schema_advice(url, schema) if missing else "")


def short_reason(error: BaseException) -> str:
    """Return a one-line reason with the likely cause, without the statement that failed."""
    driver = getattr(error, "orig", None) or error
    primary = getattr(getattr(driver, "diag", None), "message_primary", None)
    text = str(primary or driver or type(error).__name__).strip()
    reason = " ".join(re.sub(r"(?<=\w)\s*\n", ". ", text).split())
    advice = next((advice for text, advice in ADVICE.items() if text in reason), None)
    return f"{end_sentence(reason)} {advice}" if advice else reason


def _schema_advice(url: str, schema: str | None) -> str:
    """Return what to do about a schema in which an object is missing."""
    from .. import migrate  # noqa: PLC0415 - imports Alembic, a third of the start-up time

    try:
        at, known = migrate.current(url, schema=schema), migrate.revisions()
    except (DBAPIError, ExecutionProblem):
        return ""  # the database has become unreachable
    if at == known[0] or migrate.is_newer(at):
        return "\nPart of its schema is missing: run execution-core doctor to see what"
    if at is None:
        return (
            "\nIt has no tables of execution-core. If it is the right database, create them with"
            " execution-core migrate"
        )
    if at in known:
        return "\nIts schema is not up to date: run execution-core migrate"
    return (
        f"\nIts schema is at {at}, with which this version does not work: install the version that"
        " created it"
    )
