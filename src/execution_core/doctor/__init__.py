"""Whether a live database is as it should be: `doctor.examine(engine)`. It changes nothing.

What should be there is what the migrations make: in an empty SQLite database in memory, or as they
print it for PostgreSQL. So triggers, functions, views and conditions are compared as well.
"""

from datetime import timedelta
from functools import partial
from typing import Final

from sqlalchemy import URL, Engine

from ..core import validation
from .connection import open_reader, open_target, run_check
from .executions import checks_of_executions
from .finding import Checks, Finding, Level
from .postgresql_schema import postgresql_schema
from .schema import check_revision, sqlite_schema
from .settings import postgresql_activity, postgresql_settings, sqlite_settings

__all__ = ["Finding", "Level", "examine"]

_MILLISECOND: Final = timedelta(milliseconds=1)


def examine(
    target: Engine | URL | str,
    *,
    stalled_after: timedelta = timedelta(hours=1),
    whole: bool = False,
) -> list[Finding]:
    """Look at a database and say what is wrong, and what to do: `doctor.examine(engine)`.

    Each check has one finding. What the role may not read is a warning; what needs a schema that
    is not there is left out.

    Args:
        target: the host's own Engine, whose settings are checked as well; or a URL.
        stalled_after: how long a running execution may be silent, a waiting one unclaimed after
            it is due, a transaction idle.
        whole: read the history of every execution, not only of the live and the newest ones.

    Raises:
        InvalidValue: it is neither, or names a file that is not there or cannot be read.
    """
    patience = validation.duration("stalled_after", stalled_after) // _MILLISECOND
    with open_target(target) as engine:
        sqlite = engine.dialect.name == "sqlite"
        settings = (
            sqlite_settings(engine, given=engine is target)
            if sqlite
            else postgresql_settings(engine)
        )
        with open_reader(engine) as connection:
            look = partial(run_check, connection)
            findings = [look("migrated", partial(check_revision, connection)), *settings]
            if findings[0].level == "problem":
                return findings
            checks: Checks = {
                **(sqlite_schema(connection) if sqlite else postgresql_schema(connection)),
                **({} if sqlite else postgresql_activity(connection, patience)),
                **checks_of_executions(connection, patience, whole=whole),
            }
            return [*findings, *(look(check, how) for check, how in checks.items())]
