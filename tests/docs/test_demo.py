"""The demo, with fewer files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Database

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.mark.exhaustive
def test_demo_worker_killed_parses_each_file_once(database: Database) -> None:
    ran = subprocess.run(
        [sys.executable, DEMO, "--url", database.url, "--files", "300"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    output = " ".join(ran.stdout.split())
    assert "ended by SIGKILL. The execution is still running, attempt 1" in output
    assert "300 results for 300 files, each exactly once" in output
    (row,) = database.rows("SELECT * FROM executions")
    assert (row["status"], row["attempts"]) == ("completed", 2)
    transitions = [to for _, to in database.history(str(row["id"]))]
    assert transitions == ["pending", "running", "retrying", "running", "completed"]
    (killed,) = database.rows(
        "SELECT error ->> 'code' AS code FROM execution_attempts WHERE attempt = 1"
    )
    assert killed["code"] == "stalled"
    shares = database.rows(
        "SELECT attempt, count(*) AS n FROM demo_parsed_files GROUP BY attempt ORDER BY attempt"
    )
    assert [share["attempt"] for share in shares] == [1, 2]
    found = re.search(rf"{shares[0]['n']} in attempt 1, {shares[1]['n']} in attempt 2", output)
    assert found, output
    database.run("DROP TABLE demo_parsed_files")
