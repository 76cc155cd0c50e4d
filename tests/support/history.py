"""Check the recorded history of every execution."""

from collections import defaultdict
from typing import Any

from ..conftest import Database

ALLOWED_TRANSITIONS = {
    (None, "pending"),
    ("pending", "running"),
    ("pending", "cancelled"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "retrying"),
    ("running", "timed_out"),
    ("running", "cancelled"),
    ("failed", "retrying"),
    ("timed_out", "retrying"),
    ("retrying", "running"),
    ("retrying", "failed"),
    ("retrying", "cancelled"),
}


def assert_legal(database: Database) -> None:
    """Every history is a complete sequence of allowed transitions that ends in the row's status."""
    histories: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in database.rows("SELECT * FROM execution_history ORDER BY execution_id, seq"):
        histories[entry["execution_id"]].append(entry)
    for row in database.rows("SELECT id, status, attempts FROM executions"):
        history = histories[row["id"]]
        assert [h["seq"] for h in history] == list(range(1, len(history) + 1))
        transitions = [(h["from_status"], h["to_status"]) for h in history]
        assert set(transitions) <= ALLOWED_TRANSITIONS
        assert [to for _, to in transitions[:-1]] == [source for source, _ in transitions[1:]]
        assert transitions[-1][1] == row["status"]
        starts = [h["attempt"] for h in history if h["to_status"] == "running"]
        assert starts == list(range(1, row["attempts"] + 1))
