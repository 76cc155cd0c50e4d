"""The queries of docs/sql.md, and how to run them: for tests and for the benchmark."""

import re
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

PAGE = Path(__file__).parents[2] / "docs" / "sql.md"


def blocks(language: str) -> list[str]:
    fenced = rf"^```{language}\n(.*?)^```"
    return re.findall(fenced, PAGE.read_text(), re.MULTILINE | re.DOTALL)


def cookbook() -> dict[str, str]:
    """Return each heading with its query."""
    asked = r"^### ([^\n]*)\n(?:(?!^#).)*?^```sql\n(.*?)^```"
    return dict(re.findall(asked, PAGE.read_text(), re.MULTILINE | re.DOTALL))


def settings(dialect: str) -> dict[str, str]:
    """Return the parameters as SQL expressions, as the page sets them in psql or sqlite3."""
    if dialect == "postgresql":
        found = re.findall(r"^\\set (\w+) '(.*)'$", blocks("psql")[0], re.MULTILINE)
        return {name: value.replace("''", "'") for name, value in found}
    return dict(re.findall(r'^\.parameter set :(\w+) "(.*)"$', blocks("sqlite3")[0], re.MULTILINE))


def run_query(connection: Connection, query: str, **values: str) -> list[dict[str, Any]]:
    """Run a query like psql, which substitutes a parameter's text, or like sqlite3, which evaluates
    that text once and binds the value."""
    dialect = connection.dialect.name
    given = settings(dialect) | {name: f"'{value}'" for name, value in values.items()}
    if dialect == "postgresql":
        query = re.sub(r":(\w+)", lambda found: given[found[1]], query)
        result = connection.exec_driver_sql(query)
    else:
        bound = {
            name: connection.exec_driver_sql(f"SELECT {sql}").scalar()
            for name, sql in given.items()
        }
        result = connection.exec_driver_sql(query, bound)
    return [dict(row) for row in result.mappings()]
