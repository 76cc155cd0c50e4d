"""The commands that read and move executions, on both databases."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from execution_core import ExecutionManager, SqlExecutionStore
from execution_core.cli import main, output, queries
from execution_core.cli.commands import stats, watch

from ..conftest import Database
from ..support.situations import STATES, bring_to

PROGRAM = Path(sys.executable).with_name("execution-core")
NASTY = "\x1b]0;owned\x07\x1b[2J\u202erm -rf\u2028\x00"[:-1]


class Shell:
    """The command line over a database, in this process."""

    def __init__(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        self.database = database
        self.capsys = capsys
        self.err = ""

    def __call__(self, *arguments: str, code: int = 0) -> str:
        command, *rest = arguments
        self.capsys.readouterr()
        ended = main([command, "--url", self.database.url, *rest])
        out, self.err = self.capsys.readouterr()
        assert ended == code, self.err
        assert "Traceback" not in self.err
        return out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def shell(database: Database, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(database, capsys)


@pytest.fixture
def plain(database: Database) -> ExecutionManager:
    return ExecutionManager(SqlExecutionStore(database.engine))


def listed(shell: Shell, *arguments: str) -> list[str]:
    return [row["execution_id"] for row in shell.json("list", *arguments)["executions"]]


# --- ids ---------------------------------------------------------------------------------------


def test_an_id_may_be_cut_as_in_git(shell: Shell, plain: ExecutionManager) -> None:
    executions = [bring_to(plain, "pending") for _ in range(3)]
    for line in shell("list").splitlines()[1:]:
        cut = line.split()[0]
        found = shell.json("show", cut)["execution"]["execution_id"]
        assert found.startswith(cut)
    id = executions[0].id
    for spelling in (id, id.upper(), id.replace("-", ""), id[:30], f" {id} "):
        assert shell.json("show", spelling)["execution"]["execution_id"] == id
    shell("show", id[:6], code=1)
    assert "is the beginning of several: " in shell.err
    assert all(each.id in shell.err for each in executions)


@pytest.mark.parametrize("id", ["", "xyz", "0" * 33, "'; DROP TABLE executions; --", "ffff", "%"])
@pytest.mark.parametrize("command", ["show", "cancel", "retry", "replay", "watch"])
def test_what_is_not_there(shell: Shell, command: str, id: str) -> None:
    assert shell(command, id, code=3) == ""
    assert shell.err.startswith("execution-core: NOT_FOUND: No execution has the id ")


def test_ids_differ_from_their_neighbours_even_when_those_are_not_listed(
    shell: Shell, plain: ExecutionManager, database: Database
) -> None:
    # The beginning that is shown must be nobody else's in the whole table.
    one, two = "0198aaaa-0000-7000-8000-000000000001", "0198aaaa-0000-7000-8000-000000000002"
    database.run(f"INSERT INTO executions (id, type) VALUES ('{one}', 'a'), ('{two}', 'b')")
    assert shell("list", "--type", "a").splitlines()[1].split()[0] == one


# --- list --------------------------------------------------------------------------------------


def test_list_and_its_filters(shell: Shell, plain: ExecutionManager) -> None:
    made = {name: bring_to(plain, name).id for name in STATES}
    child = plain.create("other", parent_id=made["pending"]).id
    everything = [child, *reversed(made.values())]
    assert listed(shell) == everything
    assert listed(shell, "--status", "running") == [made["running-last"], made["running"]]
    both = ("--status", "completed", "--status", "cancelled")
    assert listed(shell, *both) == [made["cancelled"], made["completed"]]
    assert listed(shell, "--type", "other") == [child]
    assert listed(shell, "--parent", made["pending"]) == [child]
    assert listed(shell, "--newer-than", "1h") == everything
    assert listed(shell, "--older-than", "1h") == []
    assert listed(shell, "--finished-within", "1h", "--status", "completed") == [made["completed"]]
    assert listed(shell, "--type", "nothing") == []
    assert shell("list", "--type", "nothing") == ""
    assert shell.err == "no executions\n"


def test_list_by_age(shell: Shell, database: Database) -> None:
    ages = {}
    for hours in (1, 50, 100):
        then = datetime.now(UTC) - timedelta(hours=hours)
        clock = ExecutionManager(SqlExecutionStore(database.engine, clock=lambda t=then: t))  # type: ignore[misc]
        id = f"{int(then.timestamp() * 1000):012x}70008000000000000000"
        id = "-".join(id[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
        ages[hours] = id
        database.run(
            "INSERT INTO executions (id, type, created_at, updated_at)"
            f" VALUES ('{id}', 'a', '{output._as_json(then)}', '{output._as_json(then)}')"
        )
        clock.cancel(id)
    assert listed(shell, "--newer-than", "2d") == [ages[1]]
    assert listed(shell, "--older-than", "2d") == [ages[50], ages[100]]
    assert listed(shell, "--newer-than", "3d", "--older-than", "2d") == [ages[50]]
    assert listed(shell, "--finished-within", "3d") == [ages[1], ages[50]]


def test_pages(shell: Shell, plain: ExecutionManager) -> None:
    ids = [plain.create("a").id for _ in range(5)][::-1]
    first = shell.json("list", "--limit", "2")
    assert [row["execution_id"] for row in first["executions"]] == ids[:2]
    assert first["next_before"] == ids[1]
    second = shell.json("list", "--limit", "3", "--before", ids[1])
    assert [row["execution_id"] for row in second["executions"]] == ids[2:]
    assert shell.json("list", "--limit", "3", "--before", ids[-1])["next_before"] is None
    shell("list", "--limit", "2")
    hint = re.fullmatch(r"there may be more: --before (\S+)\n", shell.err)
    assert hint
    assert listed(shell, "--before", hint[1]) == ids[2:]


SECRETS = ("the-payload", "the-result", "the-stack", "the-metadata", "the-checkpoint")


def make_secrets(manager: ExecutionManager) -> dict[str, str]:
    from execution_core import ExecutionFailure

    done = manager.create("a", ["the-payload"], metadata={"m": "the-metadata"})
    manager.start(done.id)
    manager.checkpoint(done.id, "c", "the-checkpoint")
    manager.complete(done.id, "the-result")
    failed = manager.create("a", ["the-payload"])
    manager.start(failed.id)
    manager.fail(failed.id, ExecutionFailure(message="broken", stack="the-stack"))
    running = manager.create("a", ["the-payload"])
    manager.start(running.id)
    return {"done": done.id, "failed": failed.id, "running": running.id}


def test_nobody_sees_what_they_did_not_ask_for(shell: Shell, plain: ExecutionManager) -> None:
    make_secrets(plain)
    for arguments in (("list",), ("list", "--json"), ("stats",), ("stats", "--json"),
                      ("watch", "--json")):  # fmt: skip
        shown = shell(*arguments)
        assert not any(secret in shown for secret in SECRETS), arguments


def test_but_whoever_asks_sees_it(shell: Shell, plain: ExecutionManager) -> None:
    ids = make_secrets(plain)
    asked = [
        part
        for name in ("payload", "result", "metadata", "checkpoints", "stack")
        for part in ("--with", name)
    ]
    shown = shell("list", *asked)
    assert all(secret in shown for secret in SECRETS)
    rows = {row["execution_id"]: row for row in shell.json("list", *asked)["executions"]}
    assert rows[ids["done"]]["payload"] == ["the-payload"]
    assert rows[ids["done"]]["stack"] is None
    assert rows[ids["failed"]]["stack"] == "the-stack"
    everything = shell("show", ids["done"]) + shell("show", ids["failed"])
    assert all(secret in everything for secret in SECRETS)


# --- show --------------------------------------------------------------------------------------


def test_show_has_all_of_it(shell: Shell, plain: ExecutionManager) -> None:
    parent = plain.create("workflow", {"n": 1}, max_attempts=2, idempotency_key="once")
    child = plain.create("step", parent_id=parent.id)
    plain.start(parent.id, worker="host-1")
    plain.fail(parent.id, ValueError("first"), retryable=True)
    plain.start(parent.id, worker="host-2")
    plain.log(parent.id, "half way", level="warning", data={"rows": 3})
    plain.advance(parent.id, 5, 10, key="rows", value=5, message="reading")
    try:
        raise OSError("second")
    except OSError as error:
        plain.fail(parent.id, error)
    again = plain.replay(parent.id)
    shown = shell.json("show", parent.id)
    execution = shown["execution"]
    assert execution["execution_id"] == parent.id
    assert (execution["status"], execution["payload"]) == ("failed", {"n": 1})
    assert "OSError: second" in execution["error"]["stack"]
    assert [each["error"]["message"] for each in shown["attempts"]] == ["first", "second"]
    assert [each["to_status"] for each in shown["timeline"]] == [
        *("pending", "running", "retrying", "running", "failed")
    ]
    assert [each["execution_id"] for each in shown["children"]] == [child.id]
    assert [each["execution_id"] for each in shown["replays"]] == [again.id]
    assert [(e["message"], e["data"]) for e in shown["logs"]] == [("half way", {"rows": 3})]
    text = shell("show", parent.id)
    for part in ("OSError: second", "host-1", "retrying", child.id, again.id, "half way",
                 '"rows": 5', "5 of 10, 50%  reading", "once"):  # fmt: skip
        assert part in text, part
    assert f"replay of   {parent.id}" in shell("show", again.id)


def test_the_last_failure_is_shown_though_it_was_retried(
    shell: Shell, plain: ExecutionManager
) -> None:
    job = plain.create("a", max_attempts=2)
    with pytest.raises(ZeroDivisionError), plain.attempt(job.id, retry_on=ZeroDivisionError):
        1 / 0  # noqa: B018
    with plain.attempt(job.id):
        pass
    text = shell("show", job.id)
    assert "STACK OF ATTEMPT 1" in text
    assert "1 / 0" in text


def test_large_values_are_cut_unless_asked(shell: Shell, plain: ExecutionManager) -> None:
    job = plain.create("a", "x" * 2_000_000)
    assert len(shell("show", job.id)) < 3_000
    assert "2,000,002 characters in all: --full shows them" in shell("show", job.id)
    assert len(shell("show", job.id, "--full")) > 2_000_000
    assert len(shell.json("show", job.id)["execution"]["payload"]) == 2_000_000
    assert len(shell("list", "--with", "payload")) < 1_000


# --- stats -------------------------------------------------------------------------------------


def test_stats(shell: Shell, database: Database) -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    clock = [now]
    manager = ExecutionManager(SqlExecutionStore(database.engine, clock=lambda: clock[0]))
    for seconds in range(1, 21):
        job = manager.create("a")
        manager.start(job.id)
        clock[0] += timedelta(seconds=seconds)
        manager.complete(job.id)
    bring_to(manager, "failed")
    manager.cancel(manager.create("a").id)
    manager.create("a")
    found = shell.json("stats")
    counts = {(row["type"], row["status"]): row["count"] for row in found["counts"]}
    assert counts == {
        ("a", "completed"): 20,
        ("a", "cancelled"): 1,
        ("a", "pending"): 1,
        ("work", "failed"): 1,
    }
    of_a, of_work = found["recently_finished"]
    assert (of_a["finished"], of_a["completed"]) == (21, 20)
    assert (of_a["p50_seconds"], of_a["p95_seconds"], of_a["longest_seconds"]) == (10, 19, 20)
    assert of_work["type"] == "work"
    assert re.search(r"^a +1 +- +20 +", shell("stats"), re.MULTILINE)


def test_stats_of_nothing(shell: Shell) -> None:
    assert shell.json("stats") == {"counts": [], "recently_finished": []}
    assert shell("stats") == ""
    assert shell.err == "no executions\n"


@pytest.mark.parametrize(
    ("ordered", "percent", "found"),
    [([], 50, None), ([7], 1, 7), ([7], 100, 7), ([1, 2], 50, 1), ([1, 2], 51, 2),
     (list(range(1, 101)), 95, 95)],
)  # fmt: skip
def test_percentiles(ordered: list[float], percent: int, found: float | None) -> None:
    assert stats.percentile(ordered, percent) == found


# --- moves -------------------------------------------------------------------------------------


def test_cancel_retry_and_replay(shell: Shell, plain: ExecutionManager) -> None:
    job = plain.create("a", {"n": 1}, max_attempts=2)
    plain.start(job.id)
    plain.fail(job.id, "no")
    assert shell("retry", job.id) == f"{job.id} retrying\n"
    plain.start(job.id)
    assert shell("cancel", job.id, "--reason", "too late") == f"{job.id} cancelled\n"
    assert plain.get(job.id).metadata == {"cancellation_reason": "too late"}
    again = shell("replay", job.id).split()[0]
    other = shell("replay", job.id, "--payload", '{"n": 2}').split()[0]
    assert [plain.get(id).payload for id in (again, other)] == [{"n": 1}, {"n": 2}]
    assert plain.get(shell("replay", job.id, "--payload", "null").split()[0]).payload is None
    shell("retry", job.id, code=1)
    assert shell.err == (
        f"execution-core: INVALID_STATE_TRANSITION: Execution {job.id} is cancelled and cannot"
        " become retrying: retry is for executions that are failed or timed_out\n"
    )
    shell("replay", again, code=1)
    assert "replay is for executions that are completed or failed" in shell.err


def test_sweep(shell: Shell, database: Database, plain: ExecutionManager) -> None:
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    late = ExecutionManager(SqlExecutionStore(database.engine, clock=lambda: long_ago))
    once = late.create("a", timeout=timedelta(minutes=1))
    twice = late.create("a", timeout=timedelta(minutes=1), max_attempts=2)
    silent = late.create("b", max_attempts=2)
    for each in (once, twice, silent):
        late.start(each.id)
    assert shell("sweep", "--type", "b") == ""
    swept = shell("sweep", "--retry")
    assert swept.splitlines() == sorted([f"{once.id} timed_out", f"{twice.id} retrying"])
    assert shell.err == "2 timed out, 1 of them to be retried\n"
    assert shell("sweep", "--stalled-after", "2h") == ""
    assert shell("sweep", "--stalled-after", "30m") == f"{silent.id} timed_out\n"


def test_prune(shell: Shell, plain: ExecutionManager) -> None:
    live = bring_to(plain, "running")
    keyed = plain.create("a", idempotency_key="once")
    for each in (keyed, *(plain.create("b") for _ in range(3))):
        plain.cancel(each.id)
    done = bring_to(plain, "completed")
    assert shell("prune", "--older-than", "1h") == "0 deleted\n"
    assert shell("prune", "--older-than", "0s", "--status", "completed") == "1 deleted\n"
    assert shell("prune", "--older-than", "0s", "--keys-older-than", "1h") == "3 deleted\n"
    assert {each.id for each in plain.list()} == {live.id, keyed.id}
    assert shell("prune", "--older-than", "0s") == "1 deleted\n"
    assert done.id not in {each.id for each in plain.list()}


# --- watch -------------------------------------------------------------------------------------


def test_watch_one_to_its_end(database: Database, plain: ExecutionManager) -> None:
    job = plain.create("import", max_attempts=1)
    watching = subprocess.Popen(
        [PROGRAM, "watch", job.id[:-1], "--url", database.url, "--every", "50ms"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    assert "pending  attempt 0/1" in watching.stdout.readline()
    plain.start(job.id, worker="host")
    assert "running" in watching.stdout.readline()
    for n in (10, 20):
        plain.update_progress(job.id, n, 40, message="half")
        line = watching.stdout.readline()
        assert f"{n}/40 {2.5 * n:.4g}%" in line
        assert "half" in line
        assert "worker host" in line
    plain.complete(job.id)
    assert "completed" in watching.stdout.read()
    assert watching.wait() == 0
    watching.stdout.close()


def test_watch_tells_of_a_bad_end(shell: Shell, plain: ExecutionManager) -> None:
    assert "broken" not in shell("watch", bring_to(plain, "completed").id)
    assert "no" in shell("watch", bring_to(plain, "failed").id, code=1)


def test_rates_and_what_is_left(database: Database, plain: ExecutionManager) -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    row: dict[str, Any] = {
        "execution_id": "a", "status": "running", "attempts": 1, "started_at": now,
        "progress_current": 0, "progress_total": 100,
    }  # fmt: skip
    pace = watch.RateEstimator()

    def seen(seconds: int, current: int | None) -> tuple[Any, Any]:
        row["progress_current"] = current
        pace.measure(row, now + timedelta(seconds=seconds))
        return row["rate_per_second"], row["seconds_left"]

    assert seen(0, None) == (None, None)
    assert seen(10, 20) == (2, 40)  # by what the first attempt has done since it started
    assert seen(20, 60) == (4, 10)  # by what was seen of it
    assert seen(60, 60)[0] == 0
    assert seen(61, 10)[0] is None  # it began anew
    row["status"] = "completed"
    assert seen(62, 100) == (None, None)
    row |= {"status": "running", "progress_total": 0, "execution_id": "b"}
    assert seen(10, 20) == (2, None)


def in_a_terminal(*arguments: str, until: str | None = None) -> tuple[int, str]:
    """Run the program in a terminal of 100 columns, to its end or until it has shown something."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    running = subprocess.Popen(
        [PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written, waiting = b"", until is not None
    try:
        while part := os.read(ours, 65536):
            written += part
            if waiting and str(until) in written.decode(errors="replace"):
                running.send_signal(signal.SIGINT)
                waiting = False
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return running.wait(), written.decode()


def test_a_terminal_sees_bars_and_colours(database: Database, plain: ExecutionManager) -> None:
    job = plain.create("import")
    plain.start(job.id)
    plain.update_progress(job.id, 30, 100, message="rows")
    code, seen = in_a_terminal("watch", "--url", database.url, "--every", "100ms", until="30%")
    assert code == 0
    assert "━" in seen
    assert "30/100 30%" in seen
    assert "1 running" in seen
    assert "\x1b[36m" in seen
    _, seen = in_a_terminal("list", "--url", database.url)
    assert "\x1b[36m" in seen


@pytest.mark.parametrize("colours", [True, False])
def test_no_stored_text_reaches_the_terminal_as_it_is(
    shell: Shell, plain: ExecutionManager, *, colours: bool
) -> None:
    job = plain.create(NASTY, NASTY, metadata={NASTY: NASTY}, idempotency_key=NASTY)
    plain.start(job.id, worker=NASTY)
    plain.advance(job.id, 1, 2, key=NASTY, value=NASTY, message=NASTY)
    plain.log(job.id, NASTY, data=NASTY)
    plain.fail(job.id, NASTY, retryable=False)
    cancelled = plain.create(NASTY, parent_id=job.id)
    plain.cancel(cancelled.id, NASTY)
    running = plain.create(NASTY)
    plain.start(running.id, worker=NASTY)
    plain.update_progress(running.id, 1, 2, message=NASTY)
    url = ("--url", shell.database.url)
    every = ("payload", "metadata", "checkpoints", "stack")
    for arguments in (
        ("list", *(part for name in every for part in ("--with", name))),
        ("show", job.id),
        ("show", cancelled.id),
        ("stats",),
        ("watch", job.id),
    ):
        if colours:
            _, shown = in_a_terminal(arguments[0], *url, *arguments[1:])
            shown = re.sub(r"\x1b\[[\d;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A", "", shown)
        else:
            shown = shell(*arguments, code=int(arguments[0] == "watch"))
        assert "owned" in shown, arguments
        assert not set("\x1b\x07\u202e\u2028") & set(shown), arguments
    if not colours:
        for arguments in (("list",), ("show", job.id), ("stats",), ("watch",)):
            assert (shell(*arguments, "--json")).isascii()


# --- without a sound database ---------------------------------------------------------------------


def test_a_schema_that_is_behind(empty_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--url", empty_url]) == 1
    said = capsys.readouterr().err
    assert "execution_overview" in said
    assert said.endswith("Its schema is not up to date: run execution-core migrate\n")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(
    request: pytest.FixtureRequest, tmp_path: Path, empty_postgres: Callable[[str], str]
) -> str:
    if request.param == "postgresql":
        return empty_postgres("bare")
    (tmp_path / "bare.db").touch()
    return f"sqlite:///{tmp_path}/bare.db"


def test_nothing_is_created_by_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--url", f"sqlite:///{tmp_path}/none.db"]) == 1
    said = capsys.readouterr().err
    assert "url names a file that does not exist" in said
    assert "create it with execution-core migrate" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"password": "s3cret/@"},
        {"query": {"password": "s3cret/@"}},
        {"query": {"passfile": "s3cret/@", "sslpassword": "s3cret/@"}},
        {"query": {"unknown_option": "s3cret/@"}},
        {"port": 1, "password": "s3cret/@"},
    ],
)
@pytest.mark.parametrize("command", [["list"], ["stats"], ["show", "00"], ["watch", "--json"]])
def test_passwords_are_never_shown(
    postgres_database: Database,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    change: dict[str, Any],
) -> None:
    url = make_url(postgres_database.url).set(**change).render_as_string(hide_password=False)
    main([command[0], "--url", url, *command[1:]])
    out, err = capsys.readouterr()
    assert "s3cret" not in out + err
    assert "Traceback" not in err


def test_a_reader_who_has_seen_enough(database: Database, plain: ExecutionManager) -> None:
    for _ in range(50):
        plain.create("a" * 200)
    command = f"'{PROGRAM}' list --limit 9999 --with payload --url '{database.url}' | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("ID ")
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_without_rich_it_is_plain_text(database: Database, plain: ExecutionManager) -> None:
    plain.create("import")
    program = (
        "import sys; sys.modules['rich'] = None; sys.modules['rich.console'] = None\n"
        "from execution_core.cli import main\n"
        "sys.stdout.isatty = lambda: True\n"
        f"sys.exit(main(['list', '--url', {database.url!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^\S+ +import +pending +0/1", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(None, "-"), (0, "0.000s"), (0.0421, "0.042s"), (3.21, "3.2s"), (42.9, "42s"),
     (65, "1m 05s"), (3_600, "1h 00m"), (90_061, "1d 01h"), (-5, "-5.0s")],
)  # fmt: skip
def test_durations(seconds: float | None, message: str) -> None:
    assert output.format_duration(seconds) == message


def test_the_views_are_described_as_they_are(database: Database) -> None:
    from sqlalchemy import inspect

    from execution_core.sql.schema import views

    found = inspect(database.engine)
    for name in ("execution_overview", "execution_attempts", "execution_timeline"):
        described = [column.name for column in getattr(views, name).c]
        assert set(described) <= {column["name"] for column in found.get_columns(name)}


def test_reading_asks_the_views_alone(database: Database, plain: ExecutionManager) -> None:
    """So that a role that sees no payload can use it."""
    job = bring_to(plain, "running")
    asked: list[str] = []
    from sqlalchemy import event

    @event.listens_for(database.engine, "before_cursor_execute")
    def heard(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    with database.engine.connect() as connection:
        queries.resolve_id(connection, job.id[:30])
        queries.short_ids(connection, [job.id])
        for query in (
            *(queries.page(limit=5), queries.one(job.id), queries.attempts(job.id)),
            *(queries.timeline(job.id), queries.replays(job.id, 5), queries.counts()),
            *(queries.live_counts(), queries.last_finished(5)),
        ):
            queries.rows(connection, query)
    assert watch.look(database.engine, None, 5, watch.RateEstimator()).executions
    event.remove(database.engine, "before_cursor_execute", heard)
    assert asked
    assert not any(re.search(r"\b(FROM|JOIN) executions\b", statement) for statement in asked)
