"""The README is correct: its examples run, its chart and its SQL are those of the code."""

import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.dialects.postgresql.base import PGDialect

from execution_core import connect
from execution_core.core import state_machine
from execution_core.sql.statements import builders

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def test_readme_python_examples_run_in_order(tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks("python")))
    command = [sys.executable, "-W", "error", str(script)]
    url = f"sqlite:///{tmp_path}/executions.db"
    expected = r"Cannot complete execution [0-9a-f-]{36}: its status is completed, not running\.\n"
    for _ in range(2):  # the second run, after a worker died in the first
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert re.fullmatch(expected, ran.stdout)
        with connect(url) as manager:
            overdue = manager.create("lost", max_attempts=2, timeout=timedelta(milliseconds=1))
            manager.start(overdue.id)
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT type, status FROM executions ORDER BY id")).all()
        # The second run claims the orders of the first run and leaves its own two.
        done = [(type, "completed") for type in ("resize", "resize", "import")]
        first = [*done, ("ship", "completed"), ("ship", "completed"), ("payment", "completed")]
        second = [*done, ("ship", "pending"), ("ship", "pending"), ("payment", "completed")]
        swept, running = [("lost", "retrying")], [("lost", "running")]
        assert [tuple(row) for row in rows] == first + swept + second + running
        failures = connection.execute(text(blocks("sql")[1])).mappings().all()
        assert [row["error"] for row in failures] == 2 * ["no answer"]
    engine.dispose()


def test_readme_sql_of_complete_equals_the_statement() -> None:
    statement = builders.update_statement(
        state_machine.COMPLETE, for_attempt=True, clocked=False, whole=True
    )
    dialect = PGDialect()  # type: ignore[no-untyped-call]
    sent = str(statement.compile(dialect=dialect))
    sent = re.sub(r"RETURNING .*", "RETURNING *", sent)
    sent = re.sub(r"%\((?:new|old)_(\w+)\)s(::\w+)?", r":\1", sent).replace("executions.", "")
    assert normalized(sent) == normalized(blocks("sql")[0])


def normalized(sql: str) -> str:
    return re.sub(r" ?= ?", "=", " ".join(sql.split()))


def chart() -> str:
    """Return the state chart of the rules as Mermaid source."""
    verbs: dict[tuple[str, str], list[str]] = {}
    for rule in state_machine.RULES:
        for move in rule.moves:
            for source in move.sources if move.target else ():
                label = rule.verb
                if state_machine.ATTEMPT_LEFT in move.when and rule is not state_machine.START:
                    label += " (an attempt is left)"
                labels = verbs.setdefault((source, str(move.target)), [])
                if label not in labels:
                    labels.append(label)
    for labels in verbs.values():
        if "retry" in labels:  # with extra_attempts
            labels.remove("retry (an attempt is left)")
    arrows = [f"    {a} --> {b}: {', '.join(labels)}" for (a, b), labels in verbs.items()]
    ends = [f"    {end} --> [*]" for end in ("completed", "cancelled")]
    return "\n".join(["stateDiagram-v2", "    [*] --> pending: create", *arrows, *ends, ""])


def test_readme_state_chart_equals_the_rules() -> None:
    begin, end = "<!-- state chart: begin -->\n", "<!-- state chart: end -->"
    shown = README.read_text().split(begin)[1].split(end)[0]
    drawn = f"```mermaid\n{chart()}```\n"
    assert shown == drawn, f"put this between the marks:\n{drawn}"


@pytest.mark.parametrize("path", ["demo", "test"])
def test_readme_make_targets_exist(path: str) -> None:
    makefile = README.with_name("Makefile").read_text()
    assert f"\n{path}: " in makefile
    assert f"make {path} " in README.read_text()
