"""Run the deterministic tests in the long form that the proof needs."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from xml.etree import ElementTree as ET

ROOT: Final = Path(__file__).parents[1]
FILES: Final = (
    "tests/sql/test_lost_connections.py",
    "tests/sql/test_lost_connections_interleaved.py",
    "tests/sql/test_poolers.py",
    "tests/sql/test_standby.py",
    "tests/sql/test_failover.py",
    "tests/sql/test_bounds.py",
    "tests/sql/test_conflicts.py",
    "tests/proof/test_interleavings.py",
    "tests/sql/test_full_disk.py",
    "tests/sql/test_read_only.py",
    "tests/sql/test_incomplete_schema.py",
    "tests/sql/test_unavailable.py",
    "tests/tracking/test_clocks.py",
    "tests/sql/test_injection.py",
    "tests/sql/test_signals.py",
    "tests/proof/test_contract.py",
    "tests/proof/test_model.py",
)


@dataclass(frozen=True)
class FileResult:
    """The result of the tests of a file."""

    file: str
    passed: int
    problem: str = ""


def run() -> list[FileResult]:
    """Run all of them."""
    existing = [file for file in FILES if (ROOT / file).exists()]
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        pytest = [sys.executable, "-m", "pytest", "-q", "-n", "3", "--dist", "worksteal"]
        ended = subprocess.run(
            [*pytest, f"--junitxml={report}", *existing],
            cwd=ROOT,
            env=os.environ | {"EXECUTION_CORE_PROOF": "1", "EXECUTION_CORE_TESTS": "whole"},
            check=False,
        )
        counts = outcomes(report)
    return [result_of(file, counts, ended.returncode) for file in FILES]


def result_of(file: str, counts: Counter[tuple[str, str]], ended: int) -> FileResult:
    """Return the result of a file."""
    passed, failed = counts[file, "passed"], counts[file, "failed"]
    if not (ROOT / file).exists():
        problem = "there is no such file"
    elif failed:
        problem = f"{failed} failed, see above"
    elif not passed or ended not in (0, 1):
        problem = f"pytest ended with {ended}, see above"
    else:
        problem = ""
    return FileResult(file, passed, problem)


def outcomes(report: Path) -> Counter[tuple[str, str]]:
    """Count the outcomes in pytest's report, per file."""
    counts: Counter[tuple[str, str]] = Counter()
    if report.exists():
        for case in ET.parse(report).iter("testcase"):
            parts = {part.tag for part in case}
            failed = "failed" if parts & {"failure", "error"} else "passed"
            outcome = "skipped" if "skipped" in parts else failed
            folder, _, module = case.attrib["classname"].rpartition(".test_")
            file = f"{folder}.test_{module.partition('.')[0]}".replace(".", "/")
            counts[f"{file}.py", outcome] += 1
    return counts
