"""Check a live database: `doctor.examine(engine)`. Nothing is changed."""

from datetime import timedelta
from functools import partial
from typing import Final

from sqlalchemy import URL, Engine

from ..core import validation
from ..sql.driver.url import check_schema
from .connection import open_reader, open_target, run_check
from .executions import execution_checks
from .finding import Checks, Finding, Level
from .probe import probe
from .schema import KINDS, NEWER, STABLE_KINDS, check_revision, schema_checks
from .settings import postgresql_activity, postgresql_settings, sqlite_settings

__all__ = ["Finding", "Level", "examine", "probe"]

_MILLISECOND: Final = timedelta(milliseconds=1)


def examine(
    target: Engine | URL | str,
    *,
    stalled_after: timedelta = timedelta(hours=1),
    whole: bool = False,
    schema: str | None = None,
) -> list[Finding]:
    """Check a database and say what to do about each problem: `doctor.examine(engine)`.

    Each check returns one finding. A check that the role may not read is a warning. Checks that
    need the schema are omitted while it is missing or not upgraded. A newer version may have
    replaced constraints, indexes, triggers and functions: these are then not checked.

    Args:
        target: the application's Engine, whose settings are checked too; or a URL.
        stalled_after: the longest accepted time without a heartbeat for a running execution,
            without a claim for a due one, and idle for a transaction.
        whole: check the history of every execution, not only of the live and the newest ones.
        schema: the schema of PostgreSQL that contains the tables; by default the first one of the
            `search_path` that has them.

    Raises:
        InvalidValue: the target is neither, or its file does not exist or cannot be read.
    """
    patience = validation.duration("stalled_after", stalled_after) // _MILLISECOND
    with open_target(target) as engine:
        sqlite = engine.dialect.name == "sqlite"
        check_schema(schema, engine.dialect.name)
        settings = (
            sqlite_settings(engine, given=engine is target)
            if sqlite
            else postgresql_settings(engine)
        )
        with open_reader(engine, schema) as connection:
            run = partial(run_check, connection)
            findings = [run("migrated", partial(check_revision, connection)), *settings]
            if findings[0].level == "problem":
                return findings
            kinds = STABLE_KINDS if findings[0].advice == NEWER else KINDS
            checks: Checks = {
                **schema_checks(connection, kinds),
                **({} if sqlite else postgresql_activity(connection, patience)),
                **execution_checks(connection, patience, whole=whole),
            }
            return [*findings, *(run(name, check) for name, check in checks.items())]
