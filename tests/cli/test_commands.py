"""The commands that read or change executions, on both databases."""

import re
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
from execution_core.sql.schema import views

from ..conftest import Database
from ..support.sampling import sampled
from ..support.states import STATES, bring_to
from .conftest import Shell
from .terminal import PROGRAM, remove_control_sequences, run_in_terminal

NASTY = "\x1b]0;owned\x07\x1b[2J\u202erm -rf\u2028\x00"[:-1]


def listed(shell: Shell, *arguments: str) -> list[str]:
    return [row["id"] for row in shell.json("list", *arguments)["executions"]]


# --- ids ---------------------------------------------------------------------------------------


def test_show_id_prefix_finds_execution_or_is_ambiguous(
    shell: Shell, plain: ExecutionManager
) -> None:
    executions = [bring_to(plain, "pending") for _ in range(3)]
    for line in shell("list").splitlines()[1:]:
        cut = line.split()[0]
        found = shell.json("show", cut)["execution"]["id"]
        assert found.startswith(cut)
    id = executions[0].id
    for spelling in (id, id.upper(), id.replace("-", ""), id[:30], f" {id} "):
        assert shell.json("show", spelling)["execution"]["id"] == id
    shell("show", id[:6], code=1)
    assert "is ambiguous: matches " in shell.err
    assert all(each.id in shell.err for each in executions)


@pytest.mark.parametrize("id", ["", "xyz", "0" * 33, "'; DROP TABLE executions; --", "ffff", "%"])
@pytest.mark.parametrize("command", ["show", "cancel", "retry", "replay", "watch"])
def test_main_unknown_id_exits_3(shell: Shell, command: str, id: str) -> None:
    assert shell(command, id, code=3) == ""
    assert shell.err.startswith("execution-core: NOT_FOUND: No execution has the id ")


def test_list_short_ids_are_unique_in_the_whole_table(
    shell: Shell, plain: ExecutionManager, database: Database
) -> None:
    # The printed prefix must be unique in the whole table, not only among the printed rows.
    one, two = "0198aaaa-0000-7000-8000-000000000001", "0198aaaa-0000-7000-8000-000000000002"
    database.run(f"INSERT INTO executions (id, type) VALUES ('{one}', 'a'), ('{two}', 'b')")
    assert shell("list", "--type", "a").splitlines()[1].split()[0] == one


# --- list --------------------------------------------------------------------------------------


def test_list_filters_select_rows(shell: Shell, plain: ExecutionManager) -> None:
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


def test_list_in_pipe_prints_one_uncut_line_per_row(shell: Shell, plain: ExecutionManager) -> None:
    long, several = "t" * 255, "first line\nsecond line\t\x0b"
    for type in (long, several):
        plain.start(plain.create(type).id, worker=type)
    header, *lines = shell("list").splitlines()
    assert header.startswith("ID\tTYPE\tKEY\tSTATUS\t")
    assert {line.count("\t") for line in lines} == {header.count("\t")}
    assert [line.count("running") for line in lines] == [1, 1]
    assert r"first line\nsecond line\t\x0b" in lines[0]
    assert lines[1].count(long) == 2
    assert f"\n{long}\t" in shell("stats")


def test_list_key_selects_one(shell: Shell, plain: ExecutionManager) -> None:
    keyed = plain.create("a", idempotency_key="backup-2030-01-31")
    plain.create("a", idempotency_key="backup-2030-02-01")
    (found,) = shell.json("list", "--key", "backup-2030-01-31")["executions"]
    assert found["id"] == keyed.id
    assert shell("list", "--key", "backup") == ""
    assert "\tbackup-2030-01-31\t" in shell("list")


def test_list_shows_silent_worker(shell: Shell, database: Database) -> None:
    past = SqlExecutionStore(database.engine, clock=lambda: datetime.now(UTC) - timedelta(hours=2))
    bring_to(ExecutionManager(past), "running")
    header, row = (line.split("\t") for line in shell("list").splitlines())
    assert dict(zip(header, row, strict=True))["SILENT"] == "2h 00m"


def test_list_in_terminal_omits_empty_columns(database: Database, plain: ExecutionManager) -> None:
    plain.create("work")
    _, out = run_in_terminal("list", "--url", database.url, columns=100)
    assert "PROGRESS" not in remove_control_sequences(out)
    plain.start(plain.create("work").id, worker="host")
    _, out = run_in_terminal("list", "--url", database.url, columns=100)
    assert "WORKER" in remove_control_sequences(out)


def test_list_completed_shows_no_progress(shell: Shell, plain: ExecutionManager) -> None:
    """A script need not report its last unit: 82.5% would look unfinished."""
    for end in (plain.complete, lambda id: plain.fail(id, "no")):
        job = bring_to(plain, "running")
        plain.update_progress(job.id, 33, 40)
        end(job.id)
    header, *lines = (line.split("\t") for line in shell("list").splitlines())
    failed, completed = (dict(zip(header, line, strict=True)) for line in lines)
    assert (failed["PROGRESS"], completed["PROGRESS"]) == ("82.5%", "-")
    assert {row["progress_percent"] for row in shell.json("list")["executions"]} == {82.5}


def test_list_ages_select_rows(shell: Shell, database: Database) -> None:
    ages = {}
    for hours in (1, 50, 100):
        then = datetime.now(UTC) - timedelta(hours=hours)
        clock = ExecutionManager(SqlExecutionStore(database.engine, clock=lambda t=then: t))  # type: ignore[misc]
        id = f"{int(then.timestamp() * 1000):012x}70008000000000000000"
        id = "-".join(id[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
        ages[hours] = id
        stored = f"{then:%Y-%m-%d %H:%M:%S.%f}" + ("+00" if database.name == "postgresql" else "")
        database.run(
            "INSERT INTO executions (id, type, created_at, updated_at)"
            f" VALUES ('{id}', 'a', '{stored}', '{stored}')"
        )
        clock.cancel(id)
    assert listed(shell, "--newer-than", "2d") == [ages[1]]
    assert listed(shell, "--older-than", "2d") == [ages[50], ages[100]]
    assert listed(shell, "--newer-than", "3d", "--older-than", "2d") == [ages[50]]
    assert listed(shell, "--finished-within", "3d") == [ages[1], ages[50]]


def test_list_limit_and_before_page_through_rows(shell: Shell, plain: ExecutionManager) -> None:
    ids = [plain.create("a").id for _ in range(5)][::-1]
    first = shell.json("list", "--limit", "2")
    assert [row["id"] for row in first["executions"]] == ids[:2]
    assert first["next_before"] == ids[1]
    second = shell.json("list", "--limit", "3", "--before", ids[1])
    assert [row["id"] for row in second["executions"]] == ids[2:]
    assert shell.json("list", "--limit", "3", "--before", ids[-1])["next_before"] is None
    shell("list", "--limit", "2")
    hint = re.fullmatch(r"there may be more executions: add --before (\S+)\n", shell.err)
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


def test_list_without_with_prints_no_payloads(shell: Shell, plain: ExecutionManager) -> None:
    make_secrets(plain)
    for arguments in (("list",), ("list", "--json"), ("stats",), ("stats", "--json"),
                      ("watch", "--json")):  # fmt: skip
        shown = shell(*arguments)
        assert not any(secret in shown for secret in SECRETS), arguments


def test_list_with_prints_payloads(shell: Shell, plain: ExecutionManager) -> None:
    ids = make_secrets(plain)
    asked = [
        part
        for name in ("payload", "result", "metadata", "checkpoints", "stack")
        for part in ("--with", name)
    ]
    shown = shell("list", *asked)
    assert all(secret in shown for secret in SECRETS)
    rows = {row["id"]: row for row in shell.json("list", *asked)["executions"]}
    assert rows[ids["done"]]["payload"] == ["the-payload"]
    assert rows[ids["done"]]["stack"] is None
    assert rows[ids["failed"]]["stack"] == "the-stack"
    everything = shell("show", ids["done"]) + shell("show", ids["failed"])
    assert all(secret in everything for secret in SECRETS)


# --- show --------------------------------------------------------------------------------------


def test_show_prints_everything(shell: Shell, plain: ExecutionManager) -> None:
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
    assert execution["id"] == parent.id
    assert (execution["status"], execution["payload"]) == ("failed", {"n": 1})
    assert "OSError: second" in execution["error"]["stack"]
    assert [each["error"]["message"] for each in shown["attempts"]] == ["first", "second"]
    assert [each["to_status"] for each in shown["timeline"]] == [
        *("pending", "running", "retrying", "running", "failed")
    ]
    assert [each["id"] for each in shown["children"]] == [child.id]
    assert [each["id"] for each in shown["replays"]] == [again.id]
    assert [(e["message"], e["data"]) for e in shown["logs"]] == [("half way", {"rows": 3})]
    text = shell("show", parent.id)
    for part in ("OSError: second", "host-1", "retrying", child.id, again.id, "half way",
                 '"rows": 5', "5 of 10, 50%  reading", "once"):  # fmt: skip
        assert part in text, part
    assert f"replay of\t{parent.id}" in shell("show", again.id)


def test_show_keeps_lines_of_log(shell: Shell, plain: ExecutionManager) -> None:
    """A logged traceback stays readable."""
    job = bring_to(plain, "running")
    plain.log(job.id, "Traceback:\n  File x\n\x1b[2JValueError: y", level="error", data={"n": 1})
    plain.log(job.id, "afterwards")
    log = shell("show", job.id).rpartition("\nLog\n")[2].splitlines()
    assert log[0].endswith("Z  1  error  Traceback:")
    assert log[1:4] == ["      File x", r"    \x1b[2JValueError: y", '    {"n": 1}']
    assert log[4].endswith("  info  afterwards")


def test_show_completed_after_retry_prints_last_failure(
    shell: Shell, plain: ExecutionManager
) -> None:
    job = plain.create("a", max_attempts=2)
    with pytest.raises(ZeroDivisionError), plain.attempt(job.id, retry_on=ZeroDivisionError):
        1 / 0  # noqa: B018
    with plain.attempt(job.id):
        pass
    text = shell("show", job.id)
    assert "STACK OR OUTPUT OF ATTEMPT 1" in text
    assert "1 / 0" in text


def test_show_large_value_is_cut_without_full(shell: Shell, plain: ExecutionManager) -> None:
    job = plain.create("a", "x" * 2_000_000)
    assert len(shell("show", job.id)) < 3_000
    assert "2,000,002 characters in total: --full prints all of them" in shell("show", job.id)
    assert len(shell("show", job.id, "--full")) > 2_000_000
    assert len(shell.json("show", job.id)["execution"]["payload"]) == 2_000_000
    assert len(shell("list", "--with", "payload")) < 1_000


def make_tree(manager: ExecutionManager) -> list[str]:
    """Create a root with two children and three grandchildren, and return them in the order."""
    root = manager.start(manager.create("root").id).id
    one, two = (manager.create("child", parent_id=root).id for _ in range(2))
    second, first = (manager.create("leaf", parent_id=parent).id for parent in (two, one))
    third = manager.create("leaf", parent_id=one).id
    manager.create("other")
    manager.start(third)
    manager.update_progress(third, 1, 4)
    manager.fail(third, "no such file")
    return [root, one, first, third, two, second]


def test_show_tree_prints_each_below_its_parent(
    shell: Shell, plain: ExecutionManager, database: Database
) -> None:
    ids = make_tree(plain)
    found = shell.json("show", ids[0], "--tree")
    assert [(row["id"], row["depth"]) for row in found["executions"]] == [
        *zip(ids, (0, 1, 2, 2, 1, 2), strict=True)
    ]
    assert not found["more"]
    header, *lines = (line.split("\t") for line in shell("show", ids[0], "--tree").splitlines())
    assert header == ["DEPTH", "TYPE", "STATUS", "DONE", "ID", "ERROR"]
    assert all(id.startswith(line[4]) for id, line in zip(ids, lines, strict=True))
    assert [*lines[1][:4], lines[1][5]] == ["1", "child", "pending", "1/2 50%", "-"]
    assert [*lines[3][:4], lines[3][5]] == ["2", "leaf", "failed", "1/4 25%", "no such file"]
    assert [row["id"] for row in shell.json("show", ids[4], "--tree")["executions"]] == ids[4:]
    # With a limit the upper levels come first; manual SQL can make a circle.
    assert shell.json("show", ids[0], "--tree", "--limit", "6")["more"] is False
    cut = shell.json("show", ids[0], "--tree", "--limit", "3")
    assert cut["more"] is True
    assert {ids[0], ids[1]} < {row["id"] for row in cut["executions"]} < set(ids)
    shell("show", ids[0], "--tree", "--limit", "3")
    assert shell.err == "there are more than 3 executions: increase --limit\n"
    database.run(
        "UPDATE executions SET parent_id = :leaf WHERE id = :root", leaf=ids[3], root=ids[0]
    )
    circle = shell.json("show", ids[0], "--tree", "--limit", "6")
    assert ([row["id"] for row in circle["executions"]], circle["more"]) == (ids, False)
    shell("show", ids[0], "--tree", "--full", code=2)


def test_show_counts_many_children_and_prints_the_newest(
    shell: Shell, plain: ExecutionManager
) -> None:
    parent = plain.create("batch").id
    children = plain.create_many([{"type": "step", "parent_id": parent} for _ in range(30)])
    plain.complete_many([(each, None) for each in plain.claim("step", limit=7)])
    plain.fail_many([(each, "no") for each in plain.claim("step", limit=3)])
    text = shell("show", parent)
    assert "children\t10 of 30 finished, 3 failed\n" in text
    assert "Children (the newest 20 of 30: --tree shows more)\n" in text
    assert text.count("\tstep\t") == 20
    found = shell.json("show", parent)
    assert (found["children_counts"]["finished"], found["children_counts"]["total"]) == (10, 30)
    assert found["children"][0]["id"] == children[-1].id
    assert shell.json("show", children[0].id)["children_counts"] is None
    assert len(listed(shell, "--parent", parent, "--status", "failed,completed")) == 10
    assert len(listed(shell, "--parent", parent, "--status", "pending", "--limit", "9")) == 9


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 120])
def test_show_tree_in_terminal_is_indented(
    database: Database, plain: ExecutionManager, columns: int
) -> None:
    ids = make_tree(plain)
    arguments = ("show", ids[0], "--tree", "--url", database.url)
    _, out = run_in_terminal(*arguments, columns=columns)
    lines = remove_control_sequences(out).splitlines()
    assert "DEPTH" not in lines[0]
    indents = [
        len(line) - len(line.lstrip()) for line in lines if "leaf" in line or "child" in line
    ]
    assert indents == [2, 4, 4, 2, 4]


# --- stats -------------------------------------------------------------------------------------


def test_stats_prints_counts_and_durations(shell: Shell, database: Database) -> None:
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
    assert re.search(r"^a\t1\t-\t20\t", shell("stats"), re.MULTILINE)


def test_stats_empty_database_prints_nothing(shell: Shell) -> None:
    assert shell.json("stats") == {"counts": [], "recently_finished": []}
    assert shell("stats") == ""
    assert shell.err == "no executions\n"


@pytest.mark.parametrize(
    ("ordered", "percent", "found"),
    [([], 50, None), ([7], 1, 7), ([7], 100, 7), ([1, 2], 50, 1), ([1, 2], 51, 2),
     (list(range(1, 101)), 95, 95)],
)  # fmt: skip
def test_stats_percentile_is_nearest_rank(
    ordered: list[float], percent: int, found: float | None
) -> None:
    assert stats.percentile(ordered, percent) == found


# --- transitions --------------------------------------------------------------------------------


def test_cancel_retry_and_replay_change_executions(shell: Shell, plain: ExecutionManager) -> None:
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
        f"execution-core: INVALID_STATE_TRANSITION: Cannot retry execution {job.id}:"
        " its status is cancelled, not pending, failed, retrying or timed_out.\n"
    )
    shell("replay", again, code=1)
    assert "its status is pending, not completed, failed" in shell.err


def test_sweep_times_out_overdue_and_stalled(
    shell: Shell, database: Database, plain: ExecutionManager
) -> None:
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


def test_prune_deletes_old_finished_executions(shell: Shell, plain: ExecutionManager) -> None:
    live = bring_to(plain, "running")
    keyed = plain.create("a", idempotency_key="once")
    for each in (keyed, *(plain.create("b") for _ in range(3))):
        plain.cancel(each.id)
    done = bring_to(plain, "completed")
    assert shell("prune", "--older-than", "1h") == ""
    assert shell("prune", "--older-than", "0s", "--status", "completed") == "1 deleted\n"
    assert shell("prune", "--older-than", "0s", "--keys-older-than", "1h") == "3 deleted\n"
    assert {each.id for each in plain.list()} == {live.id, keyed.id}
    assert shell("prune", "--older-than", "0s") == "1 deleted\n"
    assert done.id not in {each.id for each in plain.list()}


# --- watch -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_watch_id_prints_changes_until_finished(
    database: Database, plain: ExecutionManager
) -> None:
    job = plain.create("import", max_attempts=1)
    watching = subprocess.Popen(
        [PROGRAM, "watch", job.id[:-1], "--url", database.url, "--every", "50ms"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    headers = watching.stdout.readline().rstrip("\n").split("\t")
    assert headers[:4] == ["TIME", "ID", "TYPE", "STATUS"]
    first = dict(zip(headers, watching.stdout.readline().split("\t"), strict=True))
    assert (first["STATUS"], first["DONE"], first["ATTEMPT"]) == ("pending", "-", "0/1\n")
    plain.start(job.id, worker="host")
    assert "running" in watching.stdout.readline()
    for n in (10, 20):
        plain.update_progress(job.id, n, 40, message="half")
        line = watching.stdout.readline()
        assert f"{n}/40 {2.5 * n:.4g}%" in line
        assert "\thalf\t" in line
        assert "\thost\t" in line
    plain.complete(job.id)
    assert "completed" in watching.stdout.read()
    assert watching.wait() == 0
    watching.stdout.close()


def test_watch_failed_execution_exits_1(shell: Shell, plain: ExecutionManager) -> None:
    assert "broken" not in shell("watch", bring_to(plain, "completed").id)
    assert "no" in shell("watch", bring_to(plain, "failed").id, code=1)


def test_watch_estimates_rate_and_time_left(database: Database, plain: ExecutionManager) -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    row: dict[str, Any] = {
        "id": "a", "status": "running", "attempts": 1, "started_at": now,
        "progress_current": 0, "progress_total": 100, "progress_percent": 0, "children": None,
    }  # fmt: skip
    estimator = watch.RateEstimator()

    def seen(seconds: int, current: int | None) -> tuple[Any, Any]:
        row["progress_current"] = current
        estimator.measure(row, now + timedelta(seconds=seconds))
        return row["rate_per_second"], row["seconds_left"]

    assert seen(0, None) == (None, None)
    assert seen(10, 20) == (2, 40)  # since the start of the first attempt
    assert seen(11, 22) == (2, 39)  # two at once are no rate of 2/s
    assert seen(20, 60) == (3, pytest.approx(40 / 3))
    assert seen(45, 60)[0] == pytest.approx(38 / 34)  # since the sample at 11: half a minute
    assert seen(60, 60)[0] == 0
    assert seen(61, 10)[0] is None  # the progress was reset
    row["status"] = "completed"
    assert seen(62, 100) == (None, None)
    row |= {"status": "running", "progress_total": 0, "id": "b"}
    assert seen(10, 20) == (2, None)


def test_watch_rate_of_later_attempt_is_measured_between_steps() -> None:
    """The start of the first step is unknown, and an earlier attempt may have made progress."""
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    estimator = watch.RateEstimator()
    rates = []
    for second in range(13):  # four units each 4 seconds, the first after 2
        row: dict[str, Any] = {
            "id": "a", "status": "running", "attempts": 2, "progress_total": 40, "children": None,
            "progress_current": 5 + (second + 2) // 4 * 4, "progress_percent": 0,
        }  # fmt: skip
        estimator.measure(row, now + timedelta(seconds=second))
        rates.append(row["rate_per_second"])
    assert rates[:3] == [None, None, None]
    assert rates[6] == rates[10] == 1
    assert max(filter(None, rates)) == 1


def test_watch_parent_shows_children_unless_it_reports_progress(
    shell: Shell, plain: ExecutionManager, database: Database
) -> None:
    past = SqlExecutionStore(database.engine, clock=lambda: datetime.now(UTC) - timedelta(hours=1))
    parent = ExecutionManager(past).start(plain.create("batch").id)
    for n in range(4):
        child = plain.start(plain.create("step", n, parent_id=parent.id).id)
        if n < 2:
            plain.fail(child.id, "no") if n else plain.complete(child.id)

    def shown() -> dict[str, str]:
        header, *lines = (line.split("\t") for line in shell("list").splitlines())
        (listed,) = (line for line in lines if "batch" in line)
        percent = dict(zip(header, listed, strict=True))
        snapshot = watch.read_snapshot(database.engine, parent.id, 1, watch.RateEstimator())
        cells = output.to_cells(watch.COLUMNS, snapshot.executions[0])
        watched = dict(zip(watch.COLUMNS, map(output.format_cell, cells), strict=True))
        return {"PROGRESS": percent["PROGRESS"], "SILENT in list": percent["SILENT"]} | watched

    ExecutionManager(past).finish_with_children(parent.id)
    cells = shown()
    assert (cells["DONE"], cells["PROGRESS"]) == ("2/4 50%", "50%")
    assert cells["MESSAGE"] == "2 of 4 finished, 1 failed, 2 running"
    assert cells["SILENT"] == cells["SILENT in list"] == "-"
    assert cells["RATE"] != "-"
    (row,) = (r for r in shell.json("watch")["executions"] if r["id"] == parent.id)
    assert (row["children"]["failed"], row["children"]["running"]) == (1, 2)
    plain.update_progress(parent.id, 1, 10, message="own")
    cells = shown()
    assert (cells["DONE"], cells["PROGRESS"], cells["MESSAGE"]) == ("1/10 10%", "10%", "own")


def test_watch_marks_silent_execution(
    shell: Shell, plain: ExecutionManager, database: Database
) -> None:
    past = SqlExecutionStore(database.engine, clock=lambda: datetime.now(UTC) - timedelta(hours=2))
    bring_to(plain, "running")
    for name, expected in (("now", "-"), ("before", "2h 00m")):
        manager = plain if name == "now" else ExecutionManager(past)
        job = bring_to(manager, "running")
        snapshot = watch.read_snapshot(database.engine, job.id, 1, watch.RateEstimator())
        (row,) = snapshot.executions
        cells = dict(zip(watch.COLUMNS, output.to_cells(watch.COLUMNS, row), strict=True))
        assert output.format_cell(cells["SILENT"]) == expected


def test_watch_cancelled_execution_names_actor_and_reason(
    shell: Shell, plain: ExecutionManager
) -> None:
    for reason, expected in (("wrong month", "by ada: wrong month"), (None, "by ada")):
        job = bring_to(plain, "running")
        plain.update_progress(job.id, 1, 2, message="reading")
        plain.cancel(job.id, reason, by="ada")
        assert f"\t{expected}\t" in shell("watch", job.id, code=1)


@pytest.mark.slow
def test_watch_terminal_prints_bars_and_styles(database: Database, plain: ExecutionManager) -> None:
    job = plain.create("import")
    plain.start(job.id)
    plain.update_progress(job.id, 30, 100, message="rows")
    code, seen = run_in_terminal("watch", "--url", database.url, "--every", "100ms", until="30%")
    assert code == 0
    assert "━" in seen
    assert "30/100 30%" in seen
    assert "1 running" in seen
    assert "\x1b[36m" in seen
    _, seen = run_in_terminal("list", "--url", database.url)
    assert "\x1b[36m" in seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database", "terminal"),
    [("sqlite", True), ("sqlite", False), ("postgresql", False)],
    indirect=["database"],
)
def test_main_stored_control_characters_are_escaped(
    shell: Shell, plain: ExecutionManager, *, terminal: bool
) -> None:
    job = plain.create(NASTY, NASTY, metadata={NASTY: NASTY}, idempotency_key=NASTY)
    plain.start(job.id, worker=NASTY)
    plain.advance(job.id, 1, 2, key=NASTY, value=NASTY, message=NASTY)
    plain.log(job.id, NASTY, data=NASTY)
    cancelled = plain.create(NASTY, parent_id=job.id)
    plain.fail(job.id, NASTY, retryable=False)
    plain.cancel(cancelled.id, NASTY)
    running = plain.create(NASTY)
    plain.start(running.id, worker=NASTY)
    plain.update_progress(running.id, 1, 2, message=NASTY)
    url = ("--url", shell.database.url)
    every = ("payload", "metadata", "checkpoints", "stack")
    commands: list[tuple[str, ...]] = [
        ("list", *(part for name in every for part in ("--with", name))),
        ("show", cancelled.id),
        ("show", job.id),
        ("show", job.id, "--tree"),
        ("stats",),
        ("watch", job.id),
        ("watch", cancelled.id),
    ]
    for arguments in sampled(commands, 2):
        if terminal:
            _, shown = run_in_terminal(arguments[0], *url, *arguments[1:])
            shown = remove_control_sequences(shown)
        else:
            shown = shell(*arguments, code=int(arguments[0] == "watch"))
        assert "owned" in shown, arguments
        assert not set("\x1b\x07\u202e\u2028") & set(shown), arguments
    if not terminal:
        for arguments in (("list",), ("show", job.id), ("stats",), ("watch",)):
            assert (shell(*arguments, "--json")).isascii()


# --- missing schemas, files and rich ------------------------------------------------------------


def test_list_missing_schema_advises_migrate(
    empty_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--url", empty_url]) == 1
    error = capsys.readouterr().err
    assert "execution_overview" in error
    assert error.endswith("create them with execution-core migrate\n")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(
    request: pytest.FixtureRequest, tmp_path: Path, empty_postgres: Callable[[str], str]
) -> str:
    if request.param == "postgresql":
        return empty_postgres("bare")
    (tmp_path / "bare.db").touch()
    return f"sqlite:///{tmp_path}/bare.db"


def test_list_missing_file_refused_and_not_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--url", f"sqlite:///{tmp_path}/none.db"]) == 1
    error = capsys.readouterr().err
    assert "url names a file that does not exist" in error
    assert "create it with execution-core migrate" in error
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
def test_reading_commands_hide_password(
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


@pytest.mark.slow
def test_list_broken_pipe_exits_quietly(database: Database, plain: ExecutionManager) -> None:
    for _ in range(50):
        plain.create("a" * 200)
    command = f"'{PROGRAM}' list --limit 9999 --with payload --url '{database.url}' | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("ID\tTYPE\t")
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


@pytest.mark.slow
def test_list_without_rich_prints_plain_text(database: Database, plain: ExecutionManager) -> None:
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
    assert re.search(r"^\S+ +import +- +pending +0/1", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(0, "0.000s"), (0.0421, "0.042s"), (3.21, "3.2s"), (42.9, "42s"),
     (65, "1m 05s"), (3_600, "1h 00m"), (90_061, "1d 01h"), (-5, "-5.0s")],
)  # fmt: skip
def test_format_duration_uses_two_units(seconds: float, message: str) -> None:
    assert output.format_duration(seconds) == message


def test_views_metadata_matches_database(database: Database) -> None:
    from sqlalchemy import inspect

    found = inspect(database.engine)
    for name in ("execution_overview", "execution_attempts", "execution_timeline"):
        described = [column.name for column in getattr(views, name).c]
        assert set(described) <= {column["name"] for column in found.get_columns(name)}


def test_reading_commands_query_only_views(database: Database, plain: ExecutionManager) -> None:
    """A role without rights on payloads can use these commands."""
    job = bring_to(plain, "running")
    statements: list[str] = []
    from sqlalchemy import event

    @event.listens_for(database.engine, "before_cursor_execute")
    def record(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    with database.engine.connect() as connection:
        queries.resolve_id(connection, job.id[:30])
        queries.short_ids(connection, [job.id])
        for query in (
            *(queries.page(limit=5), queries.one(job.id), queries.replays(job.id, 5)),
            *(queries.tree(job.id, 5), queries.cancellation(job.id)),
            *(queries.counts(), queries.live_counts(), queries.last_finished(5)),
            queries.history(views.execution_attempts, job.id, "attempt"),
            queries.history(views.execution_timeline, job.id, "seq"),
        ):
            queries.rows(connection, query)
    assert watch.read_snapshot(database.engine, None, 5, watch.RateEstimator()).executions
    event.remove(database.engine, "before_cursor_execute", record)
    assert statements
    assert not any(re.search(r"\b(FROM|JOIN) executions\b", statement) for statement in statements)
