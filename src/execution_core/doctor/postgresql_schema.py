"""Whether PostgreSQL's schema is what the migrations print: by its catalog, and by its planner."""

import io
import re
from functools import cache, partial
from typing import Any, Final, cast

from sqlalchemy import Connection, text

from .. import migrate
from ..sql.schema.indexes import metadata
from .finding import Checks, Finding
from .schema import Definitions, Schema, compare, split_definitions


def postgresql_schema(connection: Connection) -> Checks:
    """Compare with what the migrations print; the planner spells conditions and views alike."""

    @cache
    def schema() -> Schema:
        expected = _postgresql_expected(connection)
        names = [name for kind, name in expected if kind in ("tables", "views", "functions")]
        found, states = {}, {}
        for kind, name, definition, state in connection.execute(text(_CATALOG), {"names": names}):
            found[kind, name], states[kind, name] = definition, state
        return Schema(expected, found, states)

    def look(kind: str) -> Finding:
        if kind == "constraints":
            _plan_checks(connection, schema())
        elif kind == "views":
            _plan_views(connection, schema())
        return compare(kind, schema())

    kinds = ("tables", "constraints", "indexes", "functions", "triggers", "views")
    return {kind: partial(look, kind) for kind in kinds}


_TABLE: Final = re.compile(
    r"^(?:CREATE TABLE (\w+) \(\n(.*?)\n\)|ALTER TABLE (\w+) ADD COLUMN (.*?));\n\n", re.M | re.S
)
_OTHER: Final = re.compile(
    r"^(CREATE|DROP) (?:OR REPLACE )?(INDEX|FUNCTION|TRIGGER|VIEW) (\w+)(.*?);\n\n", re.M | re.S
)


def _postgresql_expected(connection: Connection) -> Definitions:
    expected: Definitions = {}
    for table in metadata.tables.values():
        expected["tables", table.name] = ""
        for column in table.columns:
            definition = column.type.compile(connection.dialect)
            definition += "" if column.nullable else " NOT NULL"
            definition += "" if column.server_default is None else " DEFAULT"
            expected["tables", f"{table.name}.{column.name}"] = definition
    printed = _printed()
    for name, inside, changed, added in _TABLE.findall(printed):
        if (name or changed) in metadata.tables:
            found = split_definitions(name or changed, inside or added)
            expected |= {key: rule for key, rule in found.items() if key[0] == "constraints"}
    for verb, what, name, rest in _OTHER.findall(printed):
        key = ("indexes" if what == "INDEX" else f"{what.lower()}s", name)
        if verb == "DROP":
            del expected[key]
        elif what == "FUNCTION":
            expected[key] = rest.split("$$")[1]
        elif what == "VIEW":
            expected[key] = f"({rest.partition(' AS')[2]})"
        else:
            expected[key] = f"CREATE {what} {name}{rest}"
    return expected


def _printed() -> str:
    printed = io.StringIO()
    migrate.upgrade_sql("postgresql://", printed)
    return printed.getvalue()


_CATALOG: Final = """
WITH names AS (SELECT unnest(CAST(:names AS text[])) AS name),
ours AS (SELECT * FROM pg_class WHERE oid IN (SELECT to_regclass(name) FROM names))
SELECT 'tables' AS kind, relname::text AS name, ''::text AS definition,
       CASE relpersistence WHEN 'p' THEN '' ELSE 'is unlogged: a crash empties it' END AS state
  FROM ours WHERE relkind IN ('r', 'p')
UNION ALL
SELECT 'views', relname, relname, '' FROM ours WHERE relkind = 'v'
UNION ALL
SELECT 'tables', relname || '.' || attname,
       format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
       || CASE WHEN atthasdef THEN ' DEFAULT' ELSE '' END, ''
  FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraints', conname,
       coalesce('CHECK (' || pg_get_expr(conbin, conrelid) || ')', pg_get_constraintdef(c.oid)),
       CASE WHEN NOT convalidated THEN 'is not valid'
            WHEN EXISTS (SELECT FROM pg_trigger AS t
                          WHERE tgconstraint = c.oid AND tgenabled IN ('D', 'R'))
            THEN 'is not enforced: its triggers are disabled' ELSE '' END
  FROM ours JOIN pg_constraint AS c ON conrelid = ours.oid
UNION ALL
SELECT 'indexes', i.relname, pg_get_indexdef(indexrelid, 0, true),
       CASE WHEN indisvalid THEN '' ELSE 'is invalid' END
  FROM ours JOIN pg_index ON indrelid = ours.oid JOIN pg_class AS i ON i.oid = indexrelid
UNION ALL
SELECT 'triggers', tgname, pg_get_triggerdef(t.oid, true),
       CASE tgenabled WHEN 'D' THEN 'is disabled' WHEN 'R' THEN 'fires on replicas alone'
            ELSE '' END
  FROM ours JOIN pg_trigger AS t ON tgrelid = ours.oid
UNION ALL
SELECT 'functions', proname, prosrc,
       CASE WHEN proconfig IS NULL THEN 'has lost its search_path' ELSE '' END
  FROM pg_proc JOIN names ON proname = name
 WHERE pronamespace IN (SELECT relnamespace FROM ours)
"""


def _plan_checks(connection: Connection, schema: Schema) -> None:
    for table in metadata.tables:
        keys = [key for key in schema.expected if key[1].startswith(f"ck_{table}_")]
        keys = [key for key in keys if key in schema.found]
        for definitions in (schema.expected, schema.found) if keys else ():
            conditions = ", ".join(definitions[key].removeprefix("CHECK") for key in keys)
            plan = _planned(connection, f"SELECT {conditions} FROM {table} WHERE false")  # noqa: S608
            definitions.update(zip(keys, plan["Output"], strict=True))


def _plan_views(connection: Connection, schema: Schema) -> None:
    def read(source: str) -> str:
        everything = f"SELECT * FROM {source} AS it"  # noqa: S608
        columns = connection.execute(text(f"{everything} LIMIT 0")).keys()
        return f"{list(columns)} {_planned(connection, everything)}"

    expected, found, _ = schema
    for key in [key for key in expected if key[0] == "views" and key in found]:
        query, view = expected[key], found[key]
        for _ in range(3):  # between two plans a table may have grown, or been analysed
            expected[key], found[key] = read(query), read(view)
            if expected[key] == found[key]:
                break


def _planned(connection: Connection, query: str) -> dict[str, Any]:
    """Return how PostgreSQL reads a query, in its own spelling. The query is not run."""
    explain = text(f"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) {query}")
    return cast("dict[str, Any]", connection.execute(explain).scalar_one()[0]["Plan"])
