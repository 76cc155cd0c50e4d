"""Each query of docs/sql.md returns the expected rows on both databases, on a fixed history."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from benchmarks.operations import scans_of_sqlite

from execution_core import ExecutionManager, SqlExecutionStore, migrate
from execution_core.sql.driver.engine import create_sync_engine

from ..conftest import Database
from ..support.cookbook import PAGE, blocks, cookbook, run_query, settings


class Clock:
    """A clock that is set to some seconds before the story was recorded."""

    def __init__(self) -> None:
        self.recorded_at = datetime.now(UTC).replace(microsecond=0)
        self.ago = 0.0

    def __call__(self) -> datetime:
        return self.recorded_at - timedelta(seconds=self.ago)


class Story:
    """A fixed history of executions over the last two hours."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = Clock()
        self.manager = ExecutionManager(SqlExecutionStore(database.engine, clock=self.clock))
        self.ids: dict[str, str] = {}

    def at(self, ago: float) -> ExecutionManager:
        self.clock.ago = ago
        return self.manager

    def create(self, name: str, ago: float, type: str, payload: Any = None, **options: Any) -> str:
        self.ids[name] = self.at(ago).create(type, payload, **options).id
        return self.ids[name]

    def replay(self, name: str, ago: float, of: str) -> str:
        self.ids[name] = self.at(ago).replay(self.ids[of]).id
        return self.ids[name]

    def record(self) -> None:
        at = self.at
        id = self.create("old", 7200, "mail")
        at(7100).start(id, worker="w1")
        at(7099).log(id, "long ago", level="warning")
        at(7000).complete(id)
        for seconds in range(1, 21):
            id = self.create(f"mail {seconds}", 1900 + seconds, "mail", "x" * seconds)
            at(1800).start(id, worker="w1")
            at(1800 - seconds).complete(id, "done")

        id = self.create("broken", 1500, "import", max_attempts=2)
        at(1490).start(id, worker="w1")
        at(1485).log(id, "begins")
        at(1484).log(id, "little room", level="warning")
        at(1479.5).fail(id, OSError("disk full"), retryable=True)
        at(1470).start(id, worker="w2")
        at(1400).fail(id, OSError("disk full"), retryable=True)
        id = self.replay("again", 1399, "broken")
        at(1390).start(id, worker="w2")
        at(1378.5).fail(id, OSError("still full"))
        self.replay("and again", 1370, "again")

        id = self.create("declined", 1300, "import", max_attempts=3)
        at(1290).start(id, worker="w2")
        at(1285).fail(id, ValueError("bad row"))
        id = self.create("late", 1280, "import", timeout=timedelta(seconds=10))
        at(1270).start(id, worker="w2")
        at(1249).timeout(id)

        id = self.create("waits", 700, "import", max_attempts=3)
        at(650).start(id, worker="w1")
        at(600).fail(id, OSError("no answer"), retryable=True, retry_after=timedelta(hours=1))
        id = self.create("stuck", 2100, "import", timeout=timedelta(minutes=10))
        at(2000).start(id, worker="w3")
        at(1990).log(id, "cannot go on", level="error")

        flow = self.create("flow", 500, "flow", idempotency_key="ship-7")
        at(400).start(flow, worker="w1")
        id = self.create("step", 390, "step", parent_id=flow)
        at(380).start(id, worker="w1")
        self.create("below", 379, "part", parent_id=id)
        at(350).complete(id)
        self.create("step after", 385, "step", parent_id=flow)
        at(20).update_progress(flow, 3, 10, message="three of ten")

        id = self.create("withdrawn", 310, "mail")
        at(300).start(id, worker="w1")
        at(200).cancel(id, "customer withdrew", by="ada")

    def names(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return rows with names for ids, floats for numbers and seconds ago for times."""
        named = {id: name for name, id in self.ids.items()}

        def plain(column: str, value: Any) -> Any:
            if isinstance(value, Decimal):
                return float(value)
            if value is not None and column.endswith("_at"):
                time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
                time = time if time.tzinfo else time.replace(tzinfo=UTC)
                return (self.clock.recorded_at - time).total_seconds()
            return named.get(str(value), value)

        return [{column: plain(column, value) for column, value in row.items()} for row in rows]

    def since(self, seconds: float) -> Any:
        """Return the given seconds plus those that passed since the story was recorded."""
        passed = (datetime.now(UTC) - self.clock.recorded_at).total_seconds()
        return pytest.approx(seconds + passed / 2, abs=passed / 2 + 1)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def story(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("cookbook") / "executions.db"
        shutil.copy(request.getfixturevalue("execution_template"), path)
        url = f"sqlite:///{path}"
    else:
        url = request.getfixturevalue("empty_postgres")("cookbook")
        migrate.upgrade(url)
    engine = create_sync_engine(url)
    story = Story(Database(request.param, url, engine))
    story.record()
    yield story
    engine.dispose()


Rows = list[dict[str, Any]]


def rows(columns: str, *values: tuple[Any, ...]) -> Rows:
    return [dict(zip(columns.split(), each, strict=True)) for each in values]


def finished_by(story: Story, characters: int, named: str) -> Rows:
    """Return how many executions finished per minute or day, newest first."""
    mails = [1800 - seconds for seconds in range(1, 21)]
    ended = [*mails, 1400, 1378.5, 1285, 1249, 350, 200]
    times = [story.clock.recorded_at - timedelta(seconds=ago) for ago in ended]
    counted = Counter(time.isoformat(" ")[:characters] for time in times)
    return rows(f"{named} finished", *sorted(counted.items(), reverse=True))


ANSWERS: dict[str, Callable[[Story], Rows]] = {
    "Which executions are running, and how far are they?": lambda s: rows(
        "execution_id worker attempts silent_seconds progress_percent progress_message",
        ("stuck", "w3", 1, s.since(2000), None, None),
        ("flow", "w1", 1, s.since(20), 30, "three of ten"),
    ),
    "Which running executions have stalled?": lambda s: rows(
        "execution_id type worker silent_seconds", ("stuck", "import", "w3", s.since(2000))
    ),
    "Which running executions are past their deadline?": lambda s: rows(
        "execution_id attempt worker deadline_at overdue_seconds",
        ("stuck", 1, "w3", 1400, s.since(1400)),
    ),
    "What is each worker running?": lambda s: rows(
        "worker type running longest_seconds longest_silence",
        ("w1", "flow", 1, s.since(400), s.since(20)),
        ("w3", "import", 1, s.since(2000), s.since(2000)),
    ),
    "Which executions are waiting, and until when?": lambda s: rows(
        "execution_id status attempts due_at due_seconds error_message",
        ("and again", "pending", 0, 1370, s.since(1370), None),
        ("step after", "pending", 0, 385, s.since(385), None),
        ("below", "pending", 0, 379, s.since(379), None),
        ("waits", "retrying", 1, -3000, s.since(-3000), "no answer"),
    ),
    "Which types have a backlog?": lambda s: rows(
        "type waiting due longest_due",
        ("import", 2, 1, s.since(1370)),
        ("step", 1, 1, s.since(385)),
        ("part", 1, 1, s.since(379)),
    ),
    "What needs attention?": lambda s: rows(
        "since_at since_seconds execution_id status reason action error_code",
        (1249, s.since(1249), "late", "timed_out", "timed_out", "retry", "timeout"),
        (1285, s.since(1285), "declined", "failed", "failed", "inspect", "ValueError"),
        (1400, s.since(1400), "stuck", "running", "overdue", "sweep", None),
    ),
    "Which executions failed, and why?": lambda s: rows(
        "completed_at execution_id status attempts max_attempts error_code error_message",
        (1249, "late", "timed_out", 1, 1, "timeout", "Execution timed out"),
        (1285, "declined", "failed", 1, 3, "ValueError", "bad row"),
        (1378.5, "again", "failed", 1, 2, "OSError", "still full"),
        (1400, "broken", "failed", 2, 2, "OSError", "disk full"),
    ),
    "Which errors are most frequent?": lambda s: rows(
        "type error_code failures last_at such_as",
        ("import", "OSError", 2, 1378.5, "disk full"),
        ("import", "timeout", 1, 1249, "Execution timed out"),
        ("import", "ValueError", 1, 1285, "bad row"),
    ),
    "Since when has a type been failing?": lambda s: rows(
        "type first_failed_at last_completed_at failures", ("import", 1400, None, 4)
    ),
    "Which executions have no attempt left?": lambda s: rows(
        "execution_id attempts", ("late", 1), ("broken", 2)
    ),
    "What happened in each attempt of an execution?": lambda s: rows(
        "attempt worker started_at duration_seconds outcome error_code error_message",
        (1, "w1", 1490, 10.5, "failed", "OSError", "disk full"),
        (2, "w2", 1470, 70, "failed", "OSError", "disk full"),
    ),
    "Which attempts failed, including those that were retried?": lambda s: rows(
        "ended_at execution_id attempt worker outcome error_message",
        (600, "waits", 1, "w1", "failed", "no answer"),
        (1249, "late", 1, "w2", "timed_out", "Execution timed out"),
        (1285, "declined", 1, "w2", "failed", "bad row"),
        (1378.5, "again", 1, "w2", "failed", "still full"),
        (1400, "broken", 2, "w2", "failed", "disk full"),
        (1479.5, "broken", 1, "w1", "failed", "disk full"),
    ),
    "How long does each type take (p50 and p95)?": lambda s: rows(
        "type completed p50_seconds p95_seconds longest_seconds",
        ("step", 1, 30, 30, 30),
        ("mail", 20, 10, 19, 20),
    ),
    "Which attempts took longest?": lambda s: rows(
        "duration_seconds execution_id attempt outcome",
        (100, "withdrawn", 1, "cancelled"),
        (70, "broken", 2, "failed"),
        (50, "waits", 1, "failed"),
        (30, "step", 1, "completed"),
        (21, "late", 1, "timed_out"),
        *((seconds, f"mail {seconds}", 1, "completed") for seconds in range(20, 11, -1)),
        (11.5, "again", 1, "failed"),
        (11, "mail 11", 1, "completed"),
        (10.5, "broken", 1, "failed"),
        *((seconds, f"mail {seconds}", 1, "completed") for seconds in (10, 9, 8)),
    ),
    "How long did executions wait before their first start?": lambda s: rows(
        "waited_seconds execution_id started_at",
        *((100 + seconds, f"mail {seconds}", 1800) for seconds in range(20, 0, -1)),
    ),
    "How many executions finish per minute?": lambda s: finished_by(s, 16, "minute"),
    "What are the success and retry rates of each type?": lambda s: rows(
        "type finished completed_percent retried_percent average_attempts",
        ("import", 4, 0, 25, 1.25),
        ("mail", 21, 95.2, 0, 1),
        ("step", 1, 100, 0, 1),
    ),
    "How many attempts did each worker complete or fail?": lambda s: rows(
        "worker attempts completed failed last_ended_at",
        ("w2", 4, 0, 4, 1249),
        ("w1", 24, 21, 2, 200),
    ),
    "Which executions belong to a workflow?": lambda s: rows(
        "type status progress_percent execution_id",
        ("flow", "running", 30, "flow"),
        ("  step", "completed", None, "step"),
        ("    part", "pending", None, "below"),
        ("  step", "pending", None, "step after"),
    ),
    "How far is a workflow?": lambda s: rows(
        "total finished percent pending running retrying completed failed timed_out cancelled",
        (2, 1, 50, 1, 0, 0, 1, 0, 0, 0),
    ),
    "Which replays does an execution have?": lambda s: rows(
        "created_at execution_id replay_of status error_message",
        (1500, "broken", None, "failed", "disk full"),
        (1399, "again", "broken", "failed", "still full"),
        (1370, "and again", "again", "pending", None),
    ),
    "Which execution has this idempotency key?": lambda s: rows(
        "execution_id type status attempts", ("flow", "flow", "running", 1)
    ),
    "What happened to an execution, and when?": lambda s: rows(
        "seq occurred_at seconds_since_last from_status to_status attempt worker error_message",
        (1, 1500, None, None, "pending", 0, None, None),
        (2, 1490, 10, "pending", "running", 1, "w1", None),
        (3, 1479.5, 10.5, "running", "retrying", 1, "w1", "disk full"),
        (4, 1470, 9.5, "retrying", "running", 2, "w2", None),
        (5, 1400, 70, "running", "failed", 2, "w2", "disk full"),
    ),
    "Which executions were cancelled, and why?": lambda s: rows(
        "occurred_at execution_id type from_status worker actor reason",
        (200, "withdrawn", "mail", "running", "w1", "ada", "customer withdrew"),
    ),
    "What did an execution log?": lambda s: rows(
        "logged_at attempt level message",
        (1484, 1, "warning", "little room"),
        (1485, 1, "info", "begins"),
    ),
    "Which warnings and errors were logged?": lambda s: rows(
        "logged_at execution_id attempt level message",
        (1484, "broken", 1, "warning", "little room"),
        (1990, "stuck", 1, "error", "cannot go on"),
    ),
    "How many executions are there of each type and status?": lambda s: rows(
        "type status count",
        ("flow", "running", 1),
        ("import", "failed", 3),
        ("import", "pending", 1),
        ("import", "retrying", 1),
        ("import", "running", 1),
        ("import", "timed_out", 1),
        ("mail", "cancelled", 1),
        ("mail", "completed", 21),
        ("part", "pending", 1),
        ("step", "completed", 1),
        ("step", "pending", 1),
    ),
    "How long has a type taken since the beginning?": lambda s: rows(
        "status count oldest_created_at average_seconds longest_seconds",
        ("cancelled", 1, 310, 100, 100),
        ("completed", 21, 7200, pytest.approx(310 / 21), 100),
    ),
    "How many executions finish per day?": lambda s: finished_by(s, 10, "day"),
    "How large are payloads and results?": lambda s: rows(
        "type finished average_payload longest_payload average_result longest_result",
        ("mail", 21, 13, 22, 6, 6),
        ("import", 4, None, None, None, None),
        ("step", 1, None, None, None, None),
    ),
    "How many executions could be pruned?": lambda s: rows(
        "finished oldest_completed_at", (1, 7000)
    ),
}
EXECUTION_OF = {  # the execution whose id is the parameter
    "What happened in each attempt of an execution?": "broken",
    "Which executions belong to a workflow?": "flow",
    "How far is a workflow?": "flow",
    "Which replays does an execution have?": "again",
    "What happened to an execution, and when?": "broken",
    "What did an execution log?": "broken",
}


def test_cookbook_questions_all_have_expected_answers() -> None:
    assert list(cookbook()) == list(ANSWERS)
    assert len(blocks("sql")) == len(ANSWERS)  # so no block is outside a question
    used = set(re.findall(r":(\w+)", "".join(blocks("sql"))))
    assert set(settings("postgresql")) == set(settings("sqlite")) == used


def test_cookbook_questions_all_have_times_under_one_second() -> None:
    figures = dict(re.findall(r"^\| ([^|]+\?) \| ([\d.,]+ \| [\d.,]+) \|", PAGE.read_text(), re.M))
    assert list(figures) == list(ANSWERS)
    times = re.findall(r"^\| [^|]+ \| ([\d.,]+) \| ([\d.,]+) \|", PAGE.read_text(), re.M)
    assert len(times) > len(figures), "the page also measures the view and the commands"
    for both in times:
        assert all(float(each.replace(",", "")) < 1000 for each in both), "milliseconds"


@pytest.mark.parametrize("question", ANSWERS)
def test_cookbook_query_returns_the_expected_rows(story: Story, question: str) -> None:
    values = {"type": "mail", "id": story.ids[EXECUTION_OF.get(question, "old")]}
    with story.database.engine.connect() as connection:
        if story.database.name == "postgresql":
            connection.exec_driver_sql("SET TIME ZONE 'UTC'")
        answer = story.names(run_query(connection, cookbook()[question], **values))
    expected = ANSWERS[question](story)
    shown = [{column: row[column] for column in expected[0]} for row in answer]
    assert shown == expected


@pytest.mark.parametrize("story", ["sqlite"], indirect=True)
def test_cookbook_plans_use_indexes(story: Story) -> None:
    """SQLite only: PostgreSQL reads so small a table whole."""
    values = {"type": "mail", "id": story.ids["old"]}
    scanning = []
    with story.database.engine.connect() as connection:
        for question, query in cookbook().items():
            plan = run_query(connection, f"EXPLAIN QUERY PLAN {query}", **values)
            read = list(scans_of_sqlite(line["detail"] for line in plan))
            assert read, question
            if any(each.startswith("scan of ") for each in read):
                scanning.append(question)
    assert scanning == ["How many executions are there of each type and status?"]
