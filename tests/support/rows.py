"""Rows that a test inserts in SQL."""

from typing import Any

from ..conftest import Database

ID = "0198a000-0000-7000-8000-000000000001"
OTHER = "0198a000-0000-7000-8000-000000000002"

ROW: dict[str, Any] = {"id": ID, "type": "work"}
RUNNING = {
    **ROW,
    "due_at": None,
    "status": "running",
    "attempts": 1,
    "started_at": "2026-01-01 00:00:00.000000",
}
DONE = {**RUNNING, "status": "completed", "completed_at": "2026-01-01 00:00:01.000000"}
FAILED = {**DONE, "status": "failed", "error": '{"message": "no"}'}


def insert(database: Database, row: dict[str, Any], into: str = "executions") -> None:
    """Insert a row, whose JSON values and times are texts, into a table."""
    kinds = dict.fromkeys(("id", "parent_id", "replay_of", "execution_id"), "uuid")
    json_columns = ("payload", "result", "error", "metadata", "checkpoints", "data")
    kinds |= dict.fromkeys(json_columns, "jsonb")
    kinds |= dict.fromkeys((n for n in row if n.endswith("_at")), "timestamptz")
    places = [
        f"CAST(:{c} AS {kinds[c]})" if c in kinds and database.name == "postgresql" else f":{c}"
        for c in row
    ]
    database.run(f"INSERT INTO {into} ({', '.join(row)}) VALUES ({', '.join(places)})", **row)
