"""Explain the plan of a statement, and insert the rows that it is planned for."""

from typing import Any

from execution_core.sql.statements import queries

from ..conftest import Database

INSERT = """
INSERT INTO executions (id, type, status, attempts, created_at, updated_at, started_at,
                        completed_at, due_at, timeout_ms, deadline_at, heartbeat_at)
"""


def insert_rows(database: Database, status: str, count: int) -> None:
    """Insert executions; of the pending ones, all but 400 are due later."""
    finished, started = status == "completed", status != "pending"
    time = "'2026-01-01 00:00:00.000000'"
    later = "'2099-01-01 00:00:00.000000'"
    if database.name == "postgresql":
        time, later = f"timestamptz {time}", f"timestamptz {later}"
        id, numbers = "gen_random_uuid()", f"generate_series(1, {count}) AS n"
    else:
        id = "printf('%08x-0000-7000-8000-%012x', n, abs(random()) % 281474976710656)"
        numbers = (
            f"(WITH RECURSIVE k(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM k WHERE n < {count})"
            " SELECT n FROM k) AS k"
        )
    database.run(
        f"{INSERT} SELECT {id}, CASE n % 20 WHEN 0 THEN 'b' ELSE 'a' END, '{status}',"
        f" {int(started)},"
        f" {time}, {time}, {time if started else 'NULL'}, {time if finished else 'NULL'},"
        f" {'NULL' if started else f'CASE WHEN n > 400 THEN {later} ELSE {time} END'},"
        f" {1000 if started else 'NULL'}, {later if started else 'NULL'},"
        f" {time if started else 'NULL'} FROM {numbers}"
    )


def explain(database: Database, query: queries.Query, table: str = "executions") -> tuple[str, int]:
    """Return the steps that read a table, and how many rows they read."""
    dialect = database.engine.dialect
    compiled: Any = query.statement.compile(dialect=dialect)
    given = {**compiled.params, **query.parameters}
    values = {
        name: convert(given[name]) if convert else given[name]
        for name, convert in (
            (name, bind.type.dialect_impl(dialect).bind_processor(dialect))
            for bind, name in compiled.bind_names.items()
        )
    }
    if database.name == "sqlite":
        with database.engine.connect() as connection:
            parameters = tuple(values[name] for name in compiled.positiontup)
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", parameters).all()
        return "\n".join(f"  {row[-1]}" for row in plan), 0
    with database.engine.connect() as connection:
        (answer,) = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {compiled}", values
        ).scalar_one()
        connection.rollback()
    lines, rows = [], 0
    nodes = [answer["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node.get("Relation Name") == table and "Scan" in node["Node Type"]:
            removed = node.get("Rows Removed by Filter", 0)
            read = (node["Actual Rows"] + removed) * node["Actual Loops"]
            lines.append(f"  {node['Node Type']} {node.get('Index Name', '')}: {read} rows")
            rows += read
    return "\n".join(lines), rows
