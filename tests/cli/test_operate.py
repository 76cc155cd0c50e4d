"""The commands of operators: verbs with an actor, what needs attention, a prune that counts."""

import getpass
import io
import json
import shlex
import sys
from datetime import UTC, datetime, timedelta

import pytest

from execution_core import ExecutionManager, SqlExecutionStore
from execution_core.cli.database import open_database, short_reason

from ..conftest import Database
from ..support.states import bring_to
from .conftest import Shell

VERBS = {
    "cancel": ("retrying", [], "cancelled"),
    "retry": ("failed-last", ["--extra-attempts", "2"], "retrying"),
    "complete": ("running", ["--result", '{"checked": true}'], "completed"),
    "fail": ("running", ["no answer", "--code", "E1"], "failed"),
    "timeout": ("running", [], "timed_out"),
    "release": ("running", [], "retrying"),
}


@pytest.mark.parametrize("by", [None, "ada"])
def test_verb_records_who_made_it(
    shell: Shell, plain: ExecutionManager, database: Database, by: str | None
) -> None:
    for verb, (state, arguments, status) in VERBS.items():
        id = bring_to(plain, state).id
        named = [] if by is None else ["--by", by]
        assert shell(verb, id, *arguments, *named) == f"{id} {status}\n"
        (last,) = database.rows(
            "SELECT actor FROM execution_timeline WHERE execution_id = :id"
            " ORDER BY seq DESC LIMIT 1",
            id=id,
        )
        assert last["actor"] == (by or getpass.getuser()), verb


def test_replay_records_who_made_it(
    shell: Shell, plain: ExecutionManager, database: Database
) -> None:
    failed = plain.create("batch").id
    plain.start(failed)
    plain.checkpoint(failed, "k", 1)
    plain.fail(failed, "no")
    again = shell("replay", failed, "--by", "ada", "--keep-checkpoints").split()[0]
    assert shell.err == ""
    assert plain.get(again).checkpoints == {"k": 1}
    (entry,) = database.rows(
        "SELECT actor FROM execution_history WHERE execution_id = :id", id=again
    )
    assert entry["actor"] == "ada"


def test_cancel_tree_cancels_everything_live_below(
    shell: Shell, plain: ExecutionManager, database: Database
) -> None:
    root = plain.start(plain.create("batch").id).id
    child = plain.start(plain.create("part", parent_id=root).id).id
    below = [plain.create("step", parent_id=child).id for _ in range(3)]
    other = plain.create("batch").id
    plain.complete(plain.start(below[0]).id)
    plain.complete(child)
    assert shell("cancel", child[:-1], "--tree") == "2 cancelled\n"
    assert shell("cancel", root, "--tree", "--reason", "too late", "--by", "ada") == "1 cancelled\n"
    assert shell("cancel", root, "--tree") == "0 cancelled\n"
    assert [plain.get(id).status for id in (root, child, *below, other)] == [
        *("cancelled", "completed", "completed", "cancelled", "cancelled", "pending")
    ]
    (last,) = database.rows(
        "SELECT actor, reason FROM execution_timeline WHERE execution_id = :id AND actor = 'ada'",
        id=root,
    )
    assert last["reason"] == "too late"


def test_finish_with_children_lets_children_end_it(shell: Shell, plain: ExecutionManager) -> None:
    parent = plain.start(plain.create("batch").id).id
    child = plain.start(plain.create("step", parent_id=parent).id).id
    shell("finish-with-children", parent, "--attempt", "2", code=1)
    assert "STALE_ATTEMPT" in shell.err
    assert shell("finish-with-children", parent) == f"{parent} running\n"
    assert "0 of 1 finished, 1 running; they end it" in shell("show", parent)
    shell("complete", child)
    assert plain.get(parent).status == "completed"


@pytest.mark.parametrize("verb", [["replay"], ["retry", "--extra-attempts", "1"]])
def test_verb_that_allows_an_attempt_of_a_command_names_the_next_step(
    shell: Shell, plain: ExecutionManager, verb: list[str]
) -> None:
    id = plain.create("job", {"command": ["true"]}).id
    plain.fail(plain.start(id).id, "no")
    given, _ = shell(*verb, id).split()
    url = shlex.quote(shell.database.url)
    advice = f"To run it: execution-core run --id {given} --url {url}\n"
    assert shell.err.endswith(advice)


def test_advised_command_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_database("postgresql://u:s3cret@h/d?sslmode=require", "jobs") as database:
        assert database.command("show 1") == (
            "execution-core show 1 --schema jobs, with postgresql://u:***@h/d, password included,"
            " as EXECUTION_CORE_URL"
        )
    monkeypatch.setenv("EXECUTION_CORE_URL", "postgresql://u:s3cret@h/d")
    with open_database("postgresql://u:s3cret@h/d", None) as database:
        assert database.command("show 1") == "execution-core show 1"


def test_reason_of_several_lines_is_one_line_of_sentences() -> None:
    driver = "connection failed: Connection refused\n\tIs the server running?\n- host: h\n"
    joined = "connection failed: Connection refused. Is the server running? - host: h"
    assert short_reason(Exception(driver)) == joined


def test_verb_of_another_attempt_is_refused(shell: Shell, plain: ExecutionManager) -> None:
    id = bring_to(plain, "running-last").id
    for verb in ("complete", "timeout", "release"):
        shell(verb, id, "--attempt", "1", code=1)
        assert "STALE_ATTEMPT" in shell.err
    assert shell("complete", id, "--attempt", "2") == f"{id} completed\n"


def test_fail_can_be_retryable(shell: Shell, plain: ExecutionManager) -> None:
    first, second = bring_to(plain, "running").id, bring_to(plain, "running").id
    assert shell("fail", first, "no", "--retryable") == f"{first} retrying\n"
    assert shell("fail", second, "no", "--retry-after", "1w") == f"{second} retrying\n"
    found = plain.get(second)
    assert found.due_at == found.updated_at + timedelta(weeks=1)


def test_redact_removes_data(shell: Shell, plain: ExecutionManager) -> None:
    id = bring_to(plain, "completed").id
    assert shell("redact", id) == f"{id} completed\n"
    assert plain.get(id).payload is None


def test_retry_without_attempts_names_the_way_out(shell: Shell, plain: ExecutionManager) -> None:
    id = bring_to(plain, "failed-last").id
    shell("retry", id, code=1)
    assert "extra_attempts=1" in shell.err
    assert shell("retry", id, "--extra-attempts", "1", "--retry-after", "1h")
    found = plain.get(id)
    assert (found.max_attempts, found.due_at) == (3, found.updated_at + timedelta(hours=1))


def test_list_takes_several_statuses(shell: Shell, plain: ExecutionManager) -> None:
    failed, done = bring_to(plain, "failed").id, bring_to(plain, "completed").id
    bring_to(plain, "pending")
    for options in (["--status", "failed,completed"], ["--status", "failed", "--status=completed"]):
        found = shell.json("list", *options)["executions"]
        assert [row["id"] for row in found] == [done, failed]


@pytest.mark.parametrize("text", ["FAILED", "failed,gone", "failed,", ""])
def test_list_invalid_status_exits_2(shell: Shell, text: str) -> None:
    shell("list", "--status", text, code=2)
    assert "choose from pending, running, completed" in shell.err
    assert "ExecutionStatus" not in shell.err


def test_list_attention_names_reason_and_action(
    shell: Shell, plain: ExecutionManager, database: Database
) -> None:
    assert shell("list", "--attention").splitlines()[1:] == []
    assert shell.err == ""
    assert "attention: nothing\n" in shell("doctor")
    failed = bring_to(plain, "failed").id
    past = SqlExecutionStore(database.engine, clock=lambda: datetime.now(UTC) - timedelta(hours=2))
    waiting = ExecutionManager(past).create("mail").id
    bring_to(plain, "completed")
    found = shell.json("list", "--attention")["executions"]
    assert [(row["id"], row["reason"], row["action"]) for row in found] == [
        (failed, "failed", "inspect"),
        (waiting, "unclaimed", "inspect"),
    ]
    attention = "warning  attention: 1 failed, 1 unclaimed\n         See them, and what to do, with"
    assert attention in shell("doctor")
    lines = shell("list", "--attention").splitlines()
    assert lines[0].split() == [
        *("ID", "TYPE", "KEY", "REASON", "ACTION", "FOR", "ATTEMPT", "WORKER", "ERROR")
    ]
    assert "2h 00m" in lines[2]
    (only,) = shell.json("list", "--attention", "--type", "mail")["executions"]
    assert only["id"] == waiting
    (only,) = shell.json("list", "--attention", "--status", "failed")["executions"]
    assert only["id"] == failed
    assert len(shell("list", "--attention", "--limit", "1").splitlines()) == 2
    assert "there may be more" in shell.err


def test_list_attention_with_other_conditions_exits_2(shell: Shell) -> None:
    shell("list", "--attention", "--older-than", "1d", code=2)


def test_prune_dry_run_counts_what_a_prune_deletes(shell: Shell, plain: ExecutionManager) -> None:
    for state in ("completed", "failed", "cancelled", "running", "pending"):
        bring_to(plain, state)
    grandparent = bring_to(plain, "running").id
    parent = plain.create("step", parent_id=grandparent).id
    plain.create("step", parent_id=parent)
    plain.cancel(parent)
    plain.complete(grandparent)
    keyed = plain.create("keyed", idempotency_key="k").id
    plain.cancel(keyed)
    count = plain.count()
    for options, expected in (
        (["--older-than", "0s"], 4),
        (["--older-than", "0s", "--keys-older-than", "1d"], 3),
        (["--older-than", "1d", "--keys-older-than", "0s"], 1),
        (["--older-than", "0s", "--status", "failed,cancelled"], 3),
        (["--older-than", "0s", "--type", "keyed"], 1),
        (["--older-than", "4w"], 0),
    ):
        assert shell("prune", *options, "--dry-run") == f"{expected} would be deleted\n"
    assert plain.count() == count
    assert shell("prune", "--older-than", "0s") == "4 deleted\n"


def test_log_reads_entries_from_standard_input(
    shell: Shell, plain: ExecutionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = bring_to(plain, "running").id
    text = "one\ntwo ü\r\n\nbad ".encode() + b"\xff\nlast"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert shell("log", "--id", id, "-", "--level", "warning", "--data", "[1]") == ""
    entries = plain.logs(id, oldest_first=True)
    assert [each.message for each in entries] == ["one", "two ü", "bad \ufffd", "last"]
    assert {(each.level, json.dumps(each.data)) for each in entries} == {("warning", "[1]")}
