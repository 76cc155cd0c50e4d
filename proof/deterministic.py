"""The parts that leave nothing to chance: tests, run as the proof asks for."""

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
    "tests/sql/test_outcomes.py",
    "tests/proof/test_interleavings.py",
    "tests/sql/test_faults.py",
    "tests/tracking/test_clocks.py",
    "tests/sql/test_injection.py",
    "tests/sql/test_signals.py",
    "tests/proof/test_contract.py",
    "tests/proof/test_model.py",
)


@dataclass(frozen=True)
class Counted:
    """What came of the tests of a file."""

    file: str
    passed: int
    problem: str = ""


def run() -> list[Counted]:
    """Run all of them."""
    there = [file for file in FILES if (ROOT / file).exists()]
    with TemporaryDirectory() as folder:
        told = Path(folder, "told.xml")
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={told}", *there],
            cwd=ROOT,
            env=os.environ | {"EXECUTION_CORE_PROOF": "1"},
            check=False,
        )
        counts = outcomes(told)
    return [judged(file, counts, ended.returncode) for file in FILES]


def judged(file: str, counts: Counter[tuple[str, str]], ended: int) -> Counted:
    """Judge a file."""
    passed, failed = counts[file, "passed"], counts[file, "failed"]
    if not (ROOT / file).exists():
        problem = "there is no such file"
    elif failed:
        problem = f"{failed} failed, see above"
    elif not passed or ended not in (0, 1):
        problem = f"pytest ended with {ended}, see above"
    else:
        problem = ""
    return Counted(file, passed, problem)


def outcomes(told: Path) -> Counter[tuple[str, str]]:
    """Count what pytest has told of each file."""
    counts: Counter[tuple[str, str]] = Counter()
    if told.exists():
        for case in ET.parse(told).iter("testcase"):
            parts = {part.tag for part in case}
            failed = "failed" if parts & {"failure", "error"} else "passed"
            outcome = "skipped" if "skipped" in parts else failed
            module = ".".join(case.attrib["classname"].split(".")[:2])
            counts[module.replace(".", "/") + ".py", outcome] += 1
    return counts
