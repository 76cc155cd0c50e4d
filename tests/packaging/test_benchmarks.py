"""The benchmarks still measure what they say they do."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks import report
from benchmarks.contenders.by_hand import COLUMNS

from execution_core.sql.statements.rows import ROW

from ..conftest import Database

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("kind", "module", "options"),
    [
        ("postgresql", "by_hand_psycopg", {}),
        ("postgresql", "by_hand_asyncio", {"tasks": 2}),
        ("sqlite", "by_hand_sqlite", {"synchronous": "NORMAL"}),
        ("postgresql", "library", {}),
        ("postgresql", "library", {"own": True}),
        ("sqlite", "library", {"synchronous": "NORMAL"}),
        ("postgresql", "library_asyncio", {"tasks": 2}),
        ("postgresql", "library_asyncio", {"tasks": 2, "own": True}),
    ],
)
def test_contenders_do_the_same_work(
    request: pytest.FixtureRequest, kind: str, module: str, options: dict[str, Any]
) -> None:
    from ..conftest import open_database

    with open_database(kind, request) as database:
        contender = importlib.import_module(f"benchmarks.contenders.{module}")
        with contender.lifecycles(database.url, **options) as run:
            assert run(4) > 0
        assert (
            work_of(database)
            == [{"status": "completed", "attempts": 1, "worker": "host-1", "moves": 3}] * 4
        )


def work_of(database: Database) -> list[dict[str, Any]]:
    return database.rows(
        "SELECT status, attempts, worker, (SELECT count(*) FROM execution_history"
        " WHERE execution_id = id) AS moves FROM executions"
    )


def test_by_hand_reads_what_the_library_reads() -> None:
    assert set(COLUMNS.split(", ")) == {column.name for column in ROW}


def test_the_page_shows_the_figures() -> None:
    figures = json.loads((DOCS / "performance.json").read_text())
    shown = re.search(
        f"{re.escape(report.BEGIN)}\n\n(.*)\n{re.escape(report.END)}",
        (DOCS / "performance.md").read_text(),
        re.DOTALL,
    )
    assert shown is not None
    assert shown[1] == report.markdown(figures)
