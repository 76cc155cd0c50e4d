"""Claims and sweeps: what is due, what is lost, and nothing twice."""

import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from execution_core import (
    Backoff,
    Execution,
    ExecutionManager,
    InvalidStateTransition,
    InvalidValue,
    SqlExecutionStore,
    StaleAttempt,
    connect,
)
from execution_core.core import state_machine, transitions, validation
from execution_core.core.selections import check_batch
from execution_core.sql.driver.engine import create_sync_engine
from execution_core.sql.statements import queries

from ..conftest import Database
from .test_races import PROCESSES, assert_legal, race

HOUR = timedelta(hours=1)


def ids(executions: list[Execution]) -> list[str]:
    return [each.id for each in executions]


# --- claims ------------------------------------------------------------------------------------


def test_the_oldest_first(any_manager: ExecutionManager) -> None:
    jobs = [any_manager.create("a", {"n": n}, max_attempts=2) for n in range(5)]
    assert any_manager.claim(limit=2, worker="host") == [any_manager.get(j.id) for j in jobs[:2]]
    (third,) = any_manager.claim()
    assert third == any_manager.get(jobs[2].id)
    assert (third.status, third.attempts, third.worker) == ("running", 1, None)
    assert third.payload == {"n": 2}
    any_manager.fail(jobs[0].id, "no", retryable=True)
    assert ids(any_manager.claim(limit=9)) == [jobs[0].id, jobs[3].id, jobs[4].id]
    assert any_manager.get(jobs[0].id).attempts == 2
    assert any_manager.get(jobs[0].id).error is None
    assert any_manager.claim(limit=9) == []


def test_one_type(any_manager: ExecutionManager) -> None:
    jobs = [any_manager.create(type) for type in "abab"]
    assert ids(any_manager.claim("b", limit=9)) == [jobs[1].id, jobs[3].id]
    assert any_manager.claim("b") == []
    assert any_manager.claim("c") == []
    assert ids(any_manager.claim(limit=9)) == [jobs[0].id, jobs[2].id]


def test_nothing_before_its_time(any_manager: ExecutionManager) -> None:
    soon, later = timedelta(seconds=1), HOUR
    delayed = any_manager.create("a", start_after=soon)
    assert delayed.due_at == delayed.created_at + soon
    far = any_manager.create("a", start_after=later)
    now = any_manager.create("a", start_after=timedelta(0))
    failed = any_manager.create("a", max_attempts=2)
    any_manager.start(failed.id)
    waiting = any_manager.fail(failed.id, "no", retryable=True, retry_after=soon)
    assert waiting.due_at == waiting.updated_at + soon
    assert ids(any_manager.claim(limit=9)) == [now.id]
    assert any_manager.claim(limit=9) == []
    time.sleep(1.05)
    claimed = any_manager.claim(limit=9)
    assert ids(claimed) == [delayed.id, failed.id]
    assert [each.due_at for each in claimed] == [None, None]
    assert any_manager.claim(limit=9) == []
    assert any_manager.get(far.id).status == "pending"


def test_who_has_waited_longest_since_it_was_due(any_manager: ExecutionManager) -> None:
    delayed = any_manager.create("a", start_after=timedelta(seconds=1))
    time.sleep(0.02)
    at_once = any_manager.create("a")
    time.sleep(1.05)
    latest = any_manager.create("a")
    order = [each.id for _ in range(3) for each in any_manager.claim()]
    assert order == [at_once.id, delayed.id, latest.id]


def test_a_start_waits_for_nothing(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a", max_attempts=3, start_after=HOUR)
    assert any_manager.start(job.id).due_at is None
    any_manager.fail(job.id, "no", retryable=True, retry_after=HOUR)
    assert any_manager.claim() == []
    started = any_manager.start(job.id)
    assert (started.status, started.due_at) == ("running", None)


def test_what_does_not_wait_has_no_time_to_wait_for(any_manager: ExecutionManager) -> None:
    m = any_manager
    cancelled = m.create("a", start_after=HOUR)
    assert m.cancel(cancelled.id, "why").due_at is None
    assert m.cancel(m.create("a", start_after=HOUR).id).due_at is None
    given_up = m.create("a", max_attempts=2)
    m.start(given_up.id)
    m.fail(given_up.id, "no", retryable=True, retry_after=HOUR)
    assert m.retry(given_up.id).due_at is not None  # it is retrying already, and stays as it is
    assert m.fail(given_up.id, "no").due_at is None
    again = m.retry(given_up.id)
    assert (again.status, again.due_at) == ("retrying", None)
    m.start(given_up.id)
    last = m.fail(given_up.id, "no", retryable=True, retry_after=HOUR)
    assert (last.status, last.due_at) == ("failed", None)
    final = m.create("a", max_attempts=2)
    m.start(final.id)
    assert m.fail(final.id, "no", retry_after=HOUR).due_at is None


@pytest.mark.parametrize(
    "options",
    [{"limit": 0}, {"limit": 10_001}, {"limit": True}, {"type": ""}, {"type": 7}, {"worker": ""}],
    ids=str,
)
def test_claims_that_make_no_sense(any_manager: ExecutionManager, options: dict[str, Any]) -> None:
    any_manager.create("a")
    with pytest.raises(InvalidValue, match=f"^{next(iter(options))} "):
        any_manager.claim(**options)
    assert any_manager.claim() != []


def test_delays_that_make_no_sense(any_manager: ExecutionManager) -> None:
    job = any_manager.create("a", max_attempts=2)
    any_manager.start(job.id)
    for delay in (5, timedelta(seconds=-1), timedelta(days=36_501), "5s", datetime.now(UTC)):
        with pytest.raises(InvalidValue, match=r"^retry_after must be "):
            any_manager.fail(job.id, "no", retryable=True, retry_after=delay)  # type: ignore[arg-type]
        with pytest.raises(InvalidValue, match=r"^start_after must be "):
            any_manager.create("a", start_after=delay)  # type: ignore[arg-type]
    assert any_manager.get(job.id).status == "running"
    assert len(any_manager.list()) == 1


def test_a_backoff_grows_to_its_maximum() -> None:
    backoff = Backoff(timedelta(seconds=1), factor=2, maximum=timedelta(seconds=10), jitter=0)
    seconds = [backoff.delay(n).total_seconds() for n in (1, 2, 3, 4, 5, 1000, 2**31 - 1)]
    assert seconds == [1, 2, 4, 8, 10, 10, 10]
    shaky = Backoff(timedelta(seconds=8), maximum=timedelta(seconds=8), jitter=0.5)
    delays = [shaky.delay(3) for _ in range(1000)]
    assert timedelta(seconds=4) <= min(delays) < timedelta(seconds=4.5)
    assert timedelta(seconds=7.5) < max(delays) <= timedelta(seconds=8)
    second, nan = timedelta(seconds=1), float("nan")
    for options in (
        {"initial": 5},
        {"initial": timedelta(0)},
        {"initial": second, "maximum": timedelta(milliseconds=1)},
        {"initial": second, "factor": 0.5},
        {"initial": second, "factor": nan},
        {"initial": second, "jitter": 1.1},
        {"initial": second, "jitter": nan},
        {"initial": second, "jitter": "some"},
    ):
        with pytest.raises(InvalidValue, match=f"^{list(options)[-1]} must "):
            Backoff(**options)
    with pytest.raises(InvalidValue, match=r"^attempt must be"):
        backoff.delay(0)


def test_a_claim_skips_what_others_hold(postgres_database: Database) -> None:
    """On PostgreSQL; SQLite has one writer at a time."""
    postgres_database.run("TRUNCATE executions CASCADE")
    impatient = create_sync_engine(postgres_database.url + "?options=-clock_timeout%3D1")
    manager = ExecutionManager(SqlExecutionStore(impatient))
    jobs = [manager.create("a") for _ in range(6)]
    with postgres_database.engine.connect() as one, postgres_database.engine.connect() as two:
        assert ids(manager.within(one).claim(limit=2)) == ids(jobs[:2])
        manager.within(two).checkpoint(jobs[2].id, "k", 1)
        assert ids(manager.claim(limit=2)) == ids(jobs[3:5])
        with pytest.raises(Exception, match="lock timeout"):
            manager.start(jobs[0].id)  # the control: whoever wants one of those has to wait
        one.rollback()
        two.commit()
    assert ids(manager.claim(limit=9)) == [*ids(jobs[:3]), jobs[5].id]
    # A child's row locks its parent's key, and keeps nobody from the parent.
    parent = manager.create("a")
    with postgres_database.engine.connect() as one:
        manager.within(one).create("b", parent_id=parent.id)
        assert ids(manager.claim()) == [parent.id]
        one.rollback()
    impatient.dispose()


CLAIMED = 2000


def claim_all(number: int, url: str, share: int) -> tuple[int, list[str], float]:
    claimed: list[str] = []
    with connect(url) as manager:
        begun = time.perf_counter()
        while found := manager.claim("race", limit=share, worker=f"w{number}"):
            assert len(found) <= share
            claimed += ids(found)
        return number, claimed, time.perf_counter() - begun


@pytest.mark.parametrize("share", [1, 7])
def test_each_is_claimed_once(database: Database, share: int, tell: Callable[[str], None]) -> None:
    """By eight processes at once; the time is printed, beside that of one."""
    took = {}
    for processes in (1, PROCESSES):
        with connect(database.url) as manager:
            made = {manager.create("race").id for _ in range(CLAIMED)}
            manager.create("other")
        answers = (
            [claim_all(0, database.url, share)]
            if processes == 1
            else race(claim_all, database.url, share)
        )
        counted = Counter(id for _, claimed, _ in answers for id in claimed)
        assert counted == Counter(made)
        rows = database.rows("SELECT id, worker, attempts FROM executions WHERE type = 'race'")
        workers = {str(row["id"]): (row["worker"], row["attempts"]) for row in rows}
        for number, claimed, _ in answers:
            assert {workers[id] for id in claimed} <= {(f"w{number}", 1)}
        took[processes] = max(seconds for *_, seconds in answers)
    assert_legal(database)
    tell(
        f"{database.name}: {CLAIMED} claimed {share} at a time,"
        f" by one process {took[1]:.2f} s, by {PROCESSES} processes {took[PROCESSES]:.2f} s"
    )


# --- sweeps ------------------------------------------------------------------------------------


@pytest.fixture
def clocked(database: Database) -> tuple[ExecutionManager, list[datetime]]:
    """A manager whose clock is set by hand."""
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    store = SqlExecutionStore(database.engine, clock=lambda: clock[0])
    return ExecutionManager(store), clock


def test_what_is_past_its_deadline(clocked: tuple[ExecutionManager, list[datetime]]) -> None:
    manager, clock = clocked
    limited, unlimited = manager.create("a", timeout=HOUR), manager.create("a")
    manager.create("never started", timeout=HOUR)
    manager.start(limited.id, worker="host")
    manager.start(unlimited.id)
    clock[0] += HOUR  # the deadline itself
    assert manager.sweep() == []
    clock[0] += timedelta(milliseconds=1)
    (swept,) = manager.sweep()
    assert swept == manager.get(limited.id)
    assert (swept.status, swept.completed_at) == ("timed_out", clock[0])
    assert swept.error == state_machine.TIMEOUT_ERROR
    assert manager.sweep() == []
    assert manager.get(unlimited.id).status == "running"


def test_what_gives_no_sign_of_life(clocked: tuple[ExecutionManager, list[datetime]]) -> None:
    manager, clock = clocked
    silent, beating, limited = (
        manager.create("a", timeout=timeout) for timeout in (None, None, timedelta(seconds=5))
    )
    for job in (silent, beating, limited):
        manager.start(job.id)
    minute = timedelta(minutes=1)
    clock[0] += minute
    manager.heartbeat(beating.id)
    assert manager.sweep(stalled_after=minute, type="b") == []
    assert ids(manager.sweep(stalled_after=minute)) == [limited.id]  # past its deadline
    clock[0] += timedelta(milliseconds=1)
    (swept,) = manager.sweep(stalled_after=minute)
    assert swept.id == silent.id
    assert swept.error is not None
    assert swept.error.model_dump(exclude_none=True) == {
        "message": "Execution stalled: no heartbeat from its worker",
        "code": "stalled",
        "retryable": True,
    }
    overdue = manager.get(limited.id).error
    assert overdue is not None
    assert overdue.code == "timeout"
    clock[0] += minute
    assert ids(manager.sweep(stalled_after=minute)) == [beating.id]


def test_both_at_once_is_a_timeout(clocked: tuple[ExecutionManager, list[datetime]]) -> None:
    manager, clock = clocked
    job = manager.create("a", timeout=HOUR)
    manager.start(job.id)
    clock[0] += 2 * HOUR
    (swept,) = manager.sweep(stalled_after=HOUR)
    assert swept.error == state_machine.TIMEOUT_ERROR


def test_a_sweep_by_the_databases_own_clock(any_manager: ExecutionManager) -> None:
    jobs = [
        any_manager.create("a", max_attempts=2, timeout=timedelta(milliseconds=1)),
        any_manager.create("a"),
        any_manager.create("a", timeout=HOUR),
    ]
    for job in jobs:
        any_manager.start(job.id)
    time.sleep(1.01)
    any_manager.heartbeat(jobs[2].id)
    assert ids(any_manager.sweep()) == [jobs[0].id]
    assert any_manager.retry(jobs[0].id).status == "retrying"
    assert ids(any_manager.sweep(stalled_after=timedelta(seconds=1))) == [jobs[1].id]
    assert any_manager.get(jobs[2].id).status == "running"


def test_a_sweep_in_batches(any_manager: ExecutionManager) -> None:
    jobs = [any_manager.create(type, timeout=timedelta(milliseconds=1)) for type in "abaaa"]
    for job in jobs:
        any_manager.start(job.id)
    time.sleep(0.02)
    assert ids(any_manager.sweep(type="b")) == [jobs[1].id]
    batches = [ids(any_manager.sweep(limit=2)) for _ in range(3)]
    assert [len(batch) for batch in batches] == [2, 2, 0]
    assert {*batches[0], *batches[1]} == {job.id for job in jobs} - {jobs[1].id}
    for options in ({"stalled_after": 60}, {"stalled_after": timedelta(0)}, {"limit": 0}):
        with pytest.raises(InvalidValue, match=f"^{next(iter(options))} "):
            any_manager.sweep(**options)


def test_what_a_hand_has_started_is_not_stalled_at_once(database: Database) -> None:
    """A hand sets no heartbeat, or leaves that of the last attempt."""
    now = "statement_timestamp()"
    if database.name == "sqlite":
        now = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
    start = (
        f"UPDATE executions SET status = 'running', attempts = attempts + 1, started_at = {now},"
        " error = NULL WHERE status IN ('pending', 'retrying')"
    )
    stalled_after = timedelta(seconds=1)
    with connect(database.url) as manager:
        fresh, again = manager.create("a"), manager.create("a", max_attempts=2)
        manager.start(again.id)
        manager.fail(again.id, "no", retryable=True)
        time.sleep(1.1)
        assert database.run(start) == 2
        assert manager.sweep(stalled_after=stalled_after) == []
        manager.update_progress(fresh.id, 1, 2)
        time.sleep(1.1)
        assert ids(manager.sweep(stalled_after=stalled_after)) == [fresh.id, again.id]


def test_a_sweep_skips_what_others_hold(postgres_database: Database) -> None:
    """On PostgreSQL; whoever is writing gives a sign of life, and a sweeper has it already."""
    postgres_database.run("TRUNCATE executions CASCADE")
    with connect(postgres_database.url) as manager:
        jobs = [manager.create("a", timeout=timedelta(milliseconds=1)) for _ in range(3)]
        for job in jobs:
            manager.start(job.id)
        time.sleep(0.01)
        with postgres_database.engine.connect() as worker, postgres_database.engine.connect() as s:
            manager.within(worker).complete(jobs[0].id, 7)
            assert ids(manager.within(s).sweep(limit=1)) == [jobs[1].id]
            assert ids(manager.sweep()) == [jobs[2].id]
            worker.commit()
            s.rollback()
        assert manager.get(jobs[0].id).result == 7
        assert ids(manager.sweep()) == [jobs[1].id]


def test_sweep_and_retry_are_one_transaction(database: Database) -> None:
    """As the README has it: no crash leaves what was swept without its retry."""
    with connect(database.url) as manager:
        job = manager.create("a", max_attempts=2, timeout=timedelta(milliseconds=1))
        manager.start(job.id)
        time.sleep(0.01)
        for end in ("rollback", "commit"):
            with database.engine.connect() as connection:
                inside = manager.within(connection)
                for lost in inside.sweep():
                    inside.retry(lost.id)
                getattr(connection, end)()
            assert manager.get(job.id).status == ("running" if end == "rollback" else "retrying")
        assert ids(manager.claim()) == [job.id]


SWEPT = 300


def sweep_or_work(number: int, url: str, job_ids: list[str]) -> Counter[str]:
    """Half of the processes sweep; the others complete, fail, and start again."""
    done: Counter[str] = Counter()
    with connect(url) as manager:
        if number % 2:
            for _ in range(40):
                for swept in manager.sweep(stalled_after=timedelta(milliseconds=5), limit=20):
                    done["swept"] += 1
                    assert swept.status == "timed_out"
                    if swept.attempts < swept.max_attempts:
                        manager.retry(swept.id)
            return done
        for n in range(40):
            for claimed in manager.claim(limit=5):
                try:
                    if (n + number) % 3:
                        manager.complete(claimed.id, number, attempt=claimed.attempts)
                        done["completed"] += 1
                    else:
                        time.sleep(0.006)
                        manager.heartbeat(claimed.id, attempt=claimed.attempts)
                except (InvalidStateTransition, StaleAttempt):
                    done["late"] += 1
    return done


def test_sweepers_and_workers_never_fight(database: Database) -> None:
    with connect(database.url) as manager:
        job_ids = [manager.create("race", max_attempts=5).id for _ in range(SWEPT)]
    total: Counter[str] = sum(race(sweep_or_work, database.url, job_ids), Counter())
    assert_legal(database)
    rows = database.rows("SELECT to_status, count(*) AS n FROM execution_history GROUP BY 1")
    moves = {row["to_status"]: row["n"] for row in rows}
    assert moves.get("timed_out", 0) == total["swept"]
    assert moves["completed"] == total["completed"]
    assert_swept_justly(database, timedelta(milliseconds=5))


def assert_swept_justly(database: Database, stalled_after: timedelta) -> None:
    """No attempt was taken for stalled before it had been silent, or even running, that long."""
    for row in database.rows("SELECT * FROM execution_attempts WHERE outcome = 'timed_out'"):
        assert row["duration_seconds"] > stalled_after.total_seconds() - 0.001, row


# --- what they read ----------------------------------------------------------------------------

BATCHES = {
    "claim": (transitions.claim("host"), None, "ix_executions_due"),
    "claim of a type": (transitions.claim("host"), "b", "ix_executions_type_due"),
    "sweep": (transitions.sweep(None), None, "ix_executions_(status_id|deadline_at)"),
    "sweep of the stalled": (
        transitions.sweep(HOUR),
        None,
        "ix_executions_(status_id|deadline_at)",
    ),
}
FILL = """
INSERT INTO executions (id, type, status, attempts, created_at, updated_at, started_at,
                        completed_at, due_at, timeout_ms, deadline_at, heartbeat_at)
"""


def fill(database: Database, status: str, count: int) -> None:
    over, started = status == "completed", status != "pending"
    time = "'2026-01-01T00:00:00.000Z'"
    later = "'2099-01-01T00:00:00.000Z'"
    if database.name == "postgresql":
        time, later = f"timestamptz {time}", f"timestamptz {later}"
        id, numbers = "gen_random_uuid()", f"generate_series(1, {count}) AS n"
    else:
        id = "printf('%08x-0000-7000-8000-%012x', n, abs(random()) % 281474976710656)"
        numbers = (
            f"(WITH RECURSIVE k(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM k WHERE n < {count})"
            " SELECT n FROM k) AS k"
        )
    database.run(
        f"{FILL} SELECT {id}, CASE n % 20 WHEN 0 THEN 'b' ELSE 'a' END, '{status}', {int(started)},"
        f" {time}, {time}, {time if started else 'NULL'}, {time if over else 'NULL'},"
        f" {'NULL' if started else f'CASE WHEN n > 400 THEN {later} END'},"
        f" {1000 if started else 'NULL'}, {later if started else 'NULL'},"
        f" {time if started else 'NULL'} FROM {numbers}"
    )


@pytest.mark.parametrize("name", BATCHES)
def test_what_has_finished_costs_nothing(
    database: Database, name: str, tell: Callable[[str], None]
) -> None:
    """Among 20,000 finished executions as many rows are read as among 4,000; all is printed.

    Also when PostgreSQL last looked at the table before there was anything to claim or to sweep. A
    sweep reads what runs: by its deadline, or in SQLite by its status.
    """
    transition, type, index = BATCHES[name]
    query = queries.update_many(check_batch(transition, type, 5), validation.new_id(), None)

    def look(finished: int, known: str = "") -> int:
        plan, rows = explained(database, query)
        assert "Seq Scan" not in plan, plan
        assert not re.search(r"SCAN executions(?! USING)", plan), plan
        assert known or re.search(rf"\b{index}\b", plan), plan
        shown = f"{rows} rows read" if database.name == "postgresql" else "by this plan"
        tell(f"{database.name}: {name} beside {finished} finished{known}, {shown}:\n{plan}")
        return rows

    def analyze() -> None:
        if database.name == "postgresql":
            database.run("ANALYZE executions")

    fill(database, "completed", 4_000)
    analyze()
    fill(database, "pending", 800)  # half of them not due yet, few of type b
    fill(database, "running", 100)
    stale = look(4_000, " and nothing else known")
    analyze()
    fresh = look(4_000)
    fill(database, "completed", 16_000)
    assert look(20_000, " and fewer known") == fresh
    analyze()
    assert look(20_000) == fresh
    assert stale <= 400 + 5  # at worst what is due, and never what has finished


def explained(database: Database, query: queries.Query) -> tuple[str, int]:
    """The steps that read executions, and how many rows they read."""
    dialect = database.engine.dialect
    compiled: Any = query.statement.compile(dialect=dialect)
    given = {**compiled.params, **query.parameters}
    values = {
        name: convert(given[name]) if convert else given[name]
        for name, convert in (
            (name, bind.type.dialect_impl(dialect).bind_processor(dialect))
            for bind, name in compiled.bind_names.items()
        )
    }
    if database.name == "sqlite":
        with database.engine.connect() as connection:
            parameters = tuple(values[name] for name in compiled.positiontup)
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", parameters).all()
        return "\n".join(f"  {row[-1]}" for row in plan), 0
    with database.engine.connect() as connection:
        (answer,) = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {compiled}", values
        ).scalar_one()
        connection.rollback()
    lines, rows = [], 0
    nodes = [answer["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node.get("Relation Name") == "executions" and "Scan" in node["Node Type"]:
            removed = node.get("Rows Removed by Filter", 0)
            read = (node["Actual Rows"] + removed) * node["Actual Loops"]
            lines.append(f"  {node['Node Type']} {node.get('Index Name', '')}: {read} rows")
            rows += read
    return "\n".join(lines), rows
