"""Whether the schema is what the migrations make; SQLite's in full."""

import re
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from sqlalchemy import Connection, create_engine, inspect, text

from .. import migrate
from ..sql.schema.indexes import metadata
from ..sql.schema.tables import executions
from .finding import Checks, Finding, to_finding

Definitions = dict[tuple[str, str], str]
"""By kind and name: SQL, comparable once it is `_plain`."""


class Schema(NamedTuple):
    """What should be there, what is there, and what is the matter with it otherwise."""

    expected: Definitions
    found: Definitions
    states: Mapping[tuple[str, str], str]


def compare(kind: str, schema: Schema) -> Finding:
    """Compare what there is of a kind with what should be there."""
    expected, found, states = schema
    names = [name for of, name in expected if of == kind]
    wrong = []
    for key in ((kind, name) for name in names):
        if key not in found:
            wrong.append(f"{key[1]} is missing")
        elif states.get(key):
            wrong.append(f"{key[1]} {states[key]}")
        elif _plain(found[key]) != _plain(expected[key]):
            wrong.append(f"{key[1]} is not as the migrations make it")
    return to_finding(kind, wrong, f"all {len(names)} are in place")


def _plain(sql: str) -> str:
    """Leave out what may be spelt in two ways, by PostgreSQL above all."""
    plain = re.sub(r'[\s"]+', "", sql).lower().replace("usingbtree", "").replace("::text", "")
    return re.sub(r"=any\(array\[(.*?)\]\)", r"in(\1)", plain)


def split_definitions(table: str, inside: str) -> Definitions:
    """Return a table, its columns and constraints, from what stands inside of CREATE TABLE."""
    items, depth = [""], 0
    for character in inside.replace('"', ""):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    parts = {("tables", table): ""}
    for item in items:
        column, *constraints = re.split(r"\bCONSTRAINT\s", item)
        name = "".join(column.split(maxsplit=1)[:1])
        if name:
            parts["tables", f"{table}.{name}"] = column
        for constraint in constraints:
            called, rule = constraint.split(maxsplit=1)
            of_column = f"FOREIGN KEY ({name}) " if rule.startswith("REFERENCES") else ""
            parts["constraints", called] = of_column + rule
    return parts


def sqlite_schema(connection: Connection) -> Checks:
    """Compare with a database that is made here and now."""
    head = create_engine("sqlite://")
    try:
        migrate.upgrade(head)
        with head.connect() as made:
            schema = Schema(_sqlite_definitions(made), _sqlite_definitions(connection), {})
    finally:
        head.dispose()
    kinds = ("tables", "constraints", "indexes", "triggers", "views")
    return {kind: partial(compare, kind, schema) for kind in kinds}


def _sqlite_definitions(connection: Connection) -> Definitions:
    definitions: Definitions = {}
    kinds = {"index": "indexes", "trigger": "triggers", "view": "views"}
    made = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    for kind, name, sql in connection.execute(text(made)):
        if kind in kinds:
            definitions[kinds[kind], name] = sql
        elif name in metadata.tables:
            definitions |= split_definitions(name, sql[sql.index("(") + 1 : sql.rindex(")")])
    return definitions


def check_revision(connection: Connection) -> Finding:
    """Look at the version."""
    at, known = migrate.current(connection), migrate.revisions()
    if at in known:
        behind = [] if at == known[0] else [f"at {at}, before {known[0]}"]
        return to_finding("migrated", behind, f"at {at}")
    if at is not None:
        says = f"at {at}, which a newer version of execution-core made"
        return Finding("migrated", "problem", says, "Install that version here as well")
    if not inspect(connection).has_table(executions.name):
        advice = "Run execution-core migrate; or see to search_path, and USAGE on the schema"
        return Finding("migrated", "problem", "no table executions is visible", advice)
    says = f"no {migrate.VERSION_TABLE} tells the version; it is compared with {known[0]}"
    advice = "Nothing, where your own Alembic lists this library's versions beside its own"
    return Finding("migrated", "warning", says, advice)
