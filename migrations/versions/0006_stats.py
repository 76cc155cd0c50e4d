"""In SQLite, the statistics of all executions from an index alone; PostgreSQL stays as it is."""

from alembic import op

revision = "execution_core_0006"
down_revision = "execution_core_0005"
branch_labels = None
depends_on = None


def is_postgresql() -> bool:
    """Tell which of the two databases this is."""
    return op.get_context().dialect.name == "postgresql"


NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
INDEX = {"ix_executions_type_status_id": ["type", "status", "id"]}
# The view reads this index, in whose order it groups. With the times in it no row is looked up in
# the table, which took most of the time; and it is written no more often, since a time of these
# changes together with the status alone.
INDEX_WITH_TIMES = {
    "ix_executions_type_status_id_times": [
        *("type", "status", "id"),
        *("created_at", "started_at", "completed_at"),
    ]
}
# Rounded to whole milliseconds: to decimals SQLite rounds by way of text, several times as slow.
STATS = f"""
        SELECT type, status, count(*) AS count, min(created_at) AS oldest_created_at,
               avg(round(days * 86400000.0)) / 1000.0 AS average_seconds,
               round(max(days) * 86400000.0) / 1000.0 AS longest_seconds
          FROM (SELECT type, status, created_at,
                       julianday(CASE WHEN status = 'running' THEN {NOW} ELSE completed_at END)
                       - julianday(started_at) AS days
                  FROM executions) AS measured
         GROUP BY type, status"""


def seconds(start: str, end: str) -> str:
    """SQL for the seconds between two times, as a number with milliseconds."""
    return f"round((julianday({end}) - julianday({start})) * 86400.0, 3)"


STATS_BEFORE = f"""
        SELECT type, status, count(*) AS count, min(created_at) AS oldest_created_at,
               avg(duration_seconds) AS average_seconds, max(duration_seconds) AS longest_seconds
          FROM (SELECT type, status, created_at,
                       CASE WHEN status = 'running' THEN {seconds("started_at", NOW)}
                            ELSE {seconds("started_at", "completed_at")} END AS duration_seconds
                  FROM executions) AS measured
         GROUP BY type, status"""


def replace(old: dict[str, list[str]], new: dict[str, list[str]], stats: str) -> None:
    """Put one index and one query of the view in place of the others."""
    for name in old:
        op.drop_index(name, "executions")
    for name, columns in new.items():
        op.create_index(name, "executions", columns)
    op.execute("DROP VIEW execution_stats")
    op.execute(f"CREATE VIEW execution_stats AS {stats}")


def upgrade() -> None:
    if not is_postgresql():
        replace(INDEX, INDEX_WITH_TIMES, STATS)


def downgrade() -> None:
    if not is_postgresql():
        replace(INDEX_WITH_TIMES, INDEX, STATS_BEFORE)
