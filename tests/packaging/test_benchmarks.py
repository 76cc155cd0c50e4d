"""The contenders of the benchmarks do the same work, and the page shows the stored figures."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks import report
from benchmarks.contenders.plain_sql import COLUMNS

from execution_core.sql.statements.rows import ROW

from ..conftest import Database, open_database

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("kind", "module", "options"),
    [
        ("postgresql", "plain_sql_psycopg", {}),
        ("postgresql", "plain_sql_asyncio", {"tasks": 2}),
        ("sqlite", "plain_sql_sqlite", {"synchronous": "NORMAL"}),
        ("postgresql", "library", {}),
        ("postgresql", "library", {"own": True}),
        ("sqlite", "library", {"synchronous": "NORMAL"}),
        ("postgresql", "library_asyncio", {"tasks": 2}),
        ("postgresql", "library_asyncio", {"tasks": 2, "own": True}),
    ],
)
def test_contender_runs_four_lifecycles_records_them(
    request: pytest.FixtureRequest, kind: str, module: str, options: dict[str, Any]
) -> None:
    with open_database(kind, request) as database:
        contender = importlib.import_module(f"benchmarks.contenders.{module}")
        with contender.lifecycles(database.url, **options) as run:
            assert run(4) > 0
        expected = {"status": "completed", "attempts": 1, "worker": "host-1", "transitions": 3}
        assert recorded_work(database) == [expected] * 4


def recorded_work(database: Database) -> list[dict[str, Any]]:
    return database.rows(
        "SELECT status, attempts, worker, (SELECT count(*) FROM execution_history"
        " WHERE execution_id = id) AS transitions FROM executions"
    )


def test_plain_sql_columns_equal_those_of_the_library() -> None:
    assert set(COLUMNS.split(", ")) == {column.name for column in ROW}


def test_performance_page_shows_the_stored_figures() -> None:
    figures = json.loads((DOCS / "performance.json").read_text())
    shown = re.search(
        f"{re.escape(report.BEGIN)}\n\n(.*)\n{re.escape(report.END)}",
        (DOCS / "performance.md").read_text(),
        re.DOTALL,
    )
    assert shown is not None
    assert shown[1] == report.markdown(figures)
