"""Check that each object of the schema exists and that the database enforces it.

The expected names come from the metadata of the tables and from the SQL that the migrations print.
Only columns are compared further: their type and NOT NULL. For the rest, the revision counts. A
newer version may have replaced everything but the tables and views.
"""

import io
import re
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Final

from sqlalchemy import Connection, Dialect, inspect, text

from .. import migrate
from ..sql.schema.indexes import metadata
from ..sql.schema.tables import executions
from .finding import Checks, Finding, to_finding

KINDS: Final = ("tables", "constraints", "indexes", "triggers", "views", "functions")
STABLE_KINDS: Final = ("tables", "views")
NEWER: Final = "Nothing while a deployment replaces this version; otherwise install the newer one"

Objects = dict[tuple[str, str], tuple[str, str]]
"""By kind and name: the type of a column, and a state that needs repair; each may be empty."""


def schema_checks(connection: Connection, kinds: Sequence[str] = KINDS) -> Checks:
    """Return one check for each of these kinds of objects that the database has."""
    expected = expected_objects(connection.dialect)

    @cache
    def find() -> Objects:
        if connection.dialect.name == "sqlite":
            return dict(_find_in_sqlite(connection))
        names = {"names": [name for _, name in expected]}
        rows = connection.execute(text(_CATALOG), names)
        return {(kind, name): (type, state) for kind, name, type, state in rows}

    def check(kind: str) -> Finding:
        wanted = {key: type for key, (type, _) in sorted(expected.items()) if key[0] == kind}
        found = find()
        wrong = [problem for key, type in wanted.items() if (problem := _problem(key, type, found))]
        return to_finding(kind, wrong, f"all {len(wanted)} exist")

    used = {kind for kind, _ in expected}
    return {kind: partial(check, kind) for kind in kinds if kind in used}


def _problem(key: tuple[str, str], type: str, found: Objects) -> str | None:
    _, name = key
    if key not in found:
        return f"{name} is missing"
    actual, state = found[key]
    if actual.lower() != type.lower():
        return f"{name} is {actual}, not {type}"
    return f"{name} {state}" if state else None


def expected_objects(dialect: Dialect) -> Objects:
    """Return what the newest migration leaves: objects in the metadata and in the printed SQL."""
    names = dict.fromkeys(_printed_objects(dialect.name), ("", ""))
    for table in metadata.tables.values():
        names["tables", table.name] = ("", "")
        for column in table.columns:
            type = column.type.compile(dialect) + ("" if column.nullable else " NOT NULL")
            names["tables", f"{table.name}.{column.name}"] = (type, "")
        for kind, items in (("constraints", table.constraints), ("indexes", table.indexes)):
            for item in items:
                if item.info.get("only", dialect.name) == dialect.name:
                    names[kind, str(item.name)] = ("", "")
    return names


@cache
def _printed_objects(dialect: str) -> list[tuple[str, str]]:
    """Return the triggers, views and functions, which are not in the metadata."""
    printed = io.StringIO()
    migrate.upgrade_sql(f"{dialect}://", printed)
    exists = {
        (f"{kind.lower()}s", name): verb == "CREATE"
        for verb, kind, name in _STATEMENT.findall(printed.getvalue())
    }
    return [key for key, created in exists.items() if created]


def _find_in_sqlite(connection: Connection) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    master = connection.execute(text("SELECT type, name, sql FROM sqlite_master WHERE sql > ''"))
    for kind, name, sql in master.all():
        yield ("indexes" if kind == "index" else f"{kind}s", name), ("", "")
        if kind == "table" and name in metadata.tables:
            yield from ((("constraints", found), ("", "")) for found in _CONSTRAINT.findall(sql))
            for column in connection.exec_driver_sql(f"PRAGMA table_info({name})").mappings():
                type = column["type"] + (" NOT NULL" if column["notnull"] else "")
                yield ("tables", f"{name}.{column['name']}"), (type, "")


_CONSTRAINT: Final = re.compile(r'\bCONSTRAINT\s+"?(\w+)')
_STATEMENT: Final = re.compile(
    r'^ *(CREATE|DROP) (?:OR REPLACE )?(FUNCTION|TRIGGER|VIEW) (?:"?\w+"?\.)?"?(\w+)', re.MULTILINE
)
_CATALOG: Final = """
WITH names AS (SELECT unnest(CAST(:names AS text[])) AS name),
ours AS (SELECT * FROM pg_class WHERE oid IN (SELECT to_regclass(name) FROM names))
SELECT 'tables' AS kind, relname::text AS name, '' AS type,
       CASE relpersistence WHEN 'p' THEN '' ELSE 'is unlogged: a crash empties it' END AS state
  FROM ours WHERE relkind IN ('r', 'p')
UNION ALL
SELECT 'views', relname, '', '' FROM ours WHERE relkind = 'v'
UNION ALL
SELECT 'tables', relname || '.' || attname,
       format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END, ''
  FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraints', conname, '',
       CASE WHEN NOT convalidated THEN 'is not valid'
            WHEN EXISTS (SELECT FROM pg_trigger AS t
                          WHERE tgconstraint = c.oid AND tgenabled IN ('D', 'R'))
            THEN 'is not enforced: its triggers are disabled' ELSE '' END
  FROM ours JOIN pg_constraint AS c ON conrelid = ours.oid
UNION ALL
SELECT 'indexes', i.relname, '', CASE WHEN indisvalid THEN '' ELSE 'is invalid' END
  FROM ours JOIN pg_index ON indrelid = ours.oid JOIN pg_class AS i ON i.oid = indexrelid
UNION ALL
SELECT 'triggers', tgname, '',
       CASE tgenabled WHEN 'D' THEN 'is disabled' WHEN 'R' THEN 'fires only on replicas'
            ELSE '' END
  FROM ours JOIN pg_trigger AS t ON tgrelid = ours.oid
UNION ALL
SELECT 'functions', proname, '', ''
  FROM pg_proc JOIN names ON proname = name
 WHERE pronamespace IN (SELECT relnamespace FROM ours)
"""


def check_revision(connection: Connection) -> Finding:
    """Check the revision of the schema."""
    at, known = migrate.current(connection), migrate.revisions()
    if at in known:
        behind = [] if at == known[0] else [f"at {at}, before {known[0]}"]
        return to_finding("migrated", behind, f"at {at}")
    if migrate.is_newer(at):
        message = f"at {at}, newer than {known[0]} of this version, which works with it"
        return Finding("migrated", "warning", message, NEWER)
    if at is not None:
        message = f"at {at}, with which this version does not work"
        return Finding("migrated", "problem", message, "Install the version that created it")
    if not inspect(connection).has_table(executions.name):
        advice = (
            "Run execution-core migrate, or check --schema, search_path and USAGE on the schema"
        )
        return Finding("migrated", "problem", "no table executions is visible", advice)
    message = f"no table {migrate.VERSION_TABLE}: assuming revision {known[0]}"
    advice = (
        "Nothing, if your own Alembic runs this library's migrations with its own. If the table is"
        " of another application, name the schema of this library with --schema"
    )
    return Finding("migrated", "warning", message, advice)
