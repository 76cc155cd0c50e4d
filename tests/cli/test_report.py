"""`progress`, `checkpoint` and `log`, as called inside `execution-core run`."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from execution_core import Execution, ExecutionManager, SqlExecutionStore
from execution_core.cli import main
from execution_core.cli.database import open_database as opened
from execution_core.cli.run.report_server import ReportServer

from ..conftest import Database

Call = Callable[..., int]


@pytest.fixture
def manager(database: Database) -> ExecutionManager:
    return ExecutionManager(SqlExecutionStore(database.engine))


@pytest.fixture
def running(manager: ExecutionManager) -> Execution:
    return manager.start(manager.create("job", max_attempts=3).id)


@pytest.fixture(params=["direct", "served"])
def call(
    database: Database,
    running: Execution,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Call]:
    """Return a function that runs the command line in the environment of the first attempt.

    It is carried out by a new process or, inside `run`, by `run`.
    """
    monkeypatch.setenv("EXECUTION_CORE_URL", database.url)
    monkeypatch.setenv("EXECUTION_CORE_SCHEMA", "")
    monkeypatch.setenv("EXECUTION_ID", running.id)
    monkeypatch.setenv("EXECUTION_ATTEMPT", str(running.attempts))
    if request.param == "direct":
        yield lambda *arguments: main(arguments)
        return
    with serve(database, database.url, tmp_path, monkeypatch) as server:
        before = server.answered

        def call(*arguments: str) -> int:
            nonlocal before
            code = main(arguments)
            if "-" not in arguments and "--id" not in arguments:
                assert server.answered == before + 1
            before = server.answered
            return code

        yield call


class CountingServer(ReportServer):
    answered = 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        reply = super().answer(request)
        self.answered += reply["code"] is not None
        return reply


@contextmanager
def serve(
    database: Database, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CountingServer]:
    environment = {"EXECUTION_CORE_URL": url, "EXECUTION_CORE_SCHEMA": ""}
    path = str(folder / "socket")
    monkeypatch.setenv("EXECUTION_CORE_SOCKET", path)
    with opened(database.url, None) as found, CountingServer(path, found, environment) as server:
        server.start()
        yield server
        server.shutdown()


def second_attempt(manager: ExecutionManager, id: str) -> None:
    manager.fail(id, "no", retryable=True)
    manager.start(id)


def test_progress_sets_progress(call: Call, manager: ExecutionManager, running: Execution) -> None:
    assert call("progress", "30", "100", "--message", "a third") == 0
    progress = manager.get(running.id).progress
    assert progress is not None
    assert (progress.percent, progress.message) == (30, "a third")


@pytest.mark.parametrize(
    "text",
    ["49", "1.10", "1234e56", "007", "true", "null", '"49"', "half way", "", "[" * 9, "größer €"],
)
def test_checkpoint_text_is_stored_and_printed_as_it_is(
    call: Call, running: Execution, manager: ExecutionManager, text: str,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:  # fmt: skip
    assert call("checkpoint", "k", "--", text) == 0
    assert manager.get(running.id).checkpoints == {"k": text}
    assert call("checkpoint", "k") == 0
    assert capfdbinary.readouterr().out.decode() == f"{text}\n"
    assert call("checkpoint", "k", "--json") == 0
    assert json.loads(capfdbinary.readouterr().out) == text


@pytest.mark.parametrize(
    ("typed", "stored"),
    [("49", 49), ("-1.5", -1.5), ('{"a": [1, null]}', {"a": [1, None]}), ('"49"', "49")],
)
def test_checkpoint_json_is_stored_and_printed(
    call: Call, running: Execution, manager: ExecutionManager, typed: str, stored: Any,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:  # fmt: skip
    assert call("checkpoint", "--json", "k", "--", typed) == 0
    assert manager.get(running.id).checkpoints == {"k": stored}
    assert call("checkpoint", "k", "--json") == 0
    printed = capfdbinary.readouterr().out
    assert json.loads(printed) == stored
    assert printed.count(b"\n") == 1


def test_checkpoint_not_set_exits_3(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("checkpoint", "k") == 3
    assert call("checkpoint", "k", "null") == 0
    assert call("checkpoint", "k") == 0
    assert capsys.readouterr().out == "null\n"


def test_log_adds_entry(call: Call, manager: ExecutionManager, running: Execution) -> None:
    assert call("log", "skipped", "--level", "warning", "--data", '{"row": 7}') == 0
    assert call("log", "done") == 0
    done, skipped = manager.logs(running.id)
    assert (skipped.message, skipped.level, skipped.data) == ("skipped", "warning", {"row": 7})
    assert (done.message, done.level, done.data, done.attempt) == ("done", "info", None, 1)


REPORTS = [("progress", "1", "2"), ("checkpoint", "k", "1"), ("log", "message")]


@pytest.mark.parametrize("report", REPORTS)
def test_report_lost_attempt_refused(
    call: Call, manager: ExecutionManager, running: Execution, report: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    second_attempt(manager, running.id)
    before = manager.get(running.id)
    assert call(*report) == 1
    assert "STALE_ATTEMPT" in capsys.readouterr().err
    manager.complete(running.id)
    assert call(*report) == 1
    assert "INVALID_STATE_TRANSITION" in capsys.readouterr().err
    after = manager.get(running.id)
    assert (after.progress, after.checkpoints) == (before.progress, before.checkpoints)
    assert manager.logs(running.id) == []


def test_report_with_id_ignores_attempt_of_environment(
    call: Call, manager: ExecutionManager, running: Execution, capsys: pytest.CaptureFixture[str]
) -> None:
    """The attempt of the environment belongs to another execution."""
    other = manager.create("job", max_attempts=3)
    manager.start(other.id)
    second_attempt(manager, other.id)
    assert call("checkpoint", "k", "1", "--id", other.id) == 0
    assert call("checkpoint", "k", "2", "--id", other.id, "--attempt", "1") == 1
    assert "STALE_ATTEMPT" in capsys.readouterr().err
    assert call("checkpoint", "k", "2", "--id", other.id, "--attempt", "2") == 0
    assert manager.get(other.id).checkpoints == {"k": "2"}
    assert manager.get(running.id).checkpoints == {}
    assert call("progress", "1", "2", "--id", "ffffffff") == 3
    assert "NOT_FOUND" in capsys.readouterr().err


def test_progress_id_prefix_accepted(
    call: Call, manager: ExecutionManager, running: Execution
) -> None:
    assert call("progress", "1", "2", "--id", running.id[:18]) == 0
    assert manager.get(running.id).progress is not None


def test_report_without_execution_exits_2(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EXECUTION_ID")
    assert call("progress", "1", "2") == 2
    assert "use --id, or run this inside execution-core run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        *(("progress", "half", "2"), ("progress", "1"), ("progress", "5", "3")),
        *(
            ("checkpoint",),
            ("checkpoint", "--json", "k", "NaN"),
            ("checkpoint", "--json", "k", "["),
        ),
        ("log", "m", "--data", "{"),
    ],
)
def test_report_usage_error_exits_2(call: Call, arguments: tuple[str, ...]) -> None:
    assert call(*arguments) == 2


def test_report_invalid_attempt_exits_2(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTION_ATTEMPT", "first")
    assert call("progress", "1", "2") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("progress", "3", "-2"), "total must be from 0"),
        (("progress", "--", "-3", "2"), "current must be from 0"),
        (("checkpoint", "", "1"), "key must not be empty"),
        (("checkpoint", "k", "\udcff"), "must not contain a lone surrogate"),
        (("log", "m", "--level", "loud"), "level must be one of"),
    ],
)
def test_report_invalid_value_refused(
    call: Call, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 1
    error = capsys.readouterr().err
    assert "INVALID_VALUE" in error
    assert message in error


# Inside `run`


def test_report_with_other_database_is_not_served(
    database: Database, running: Execution, manager: ExecutionManager, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A command may name another database than that of its run."""
    monkeypatch.setenv("EXECUTION_ID", running.id)
    with serve(database, "sqlite:///another.db", tmp_path, monkeypatch) as server:
        monkeypatch.setenv("EXECUTION_CORE_URL", database.url)
        assert main(["log", "from the environment"]) == 0
        monkeypatch.setenv("EXECUTION_CORE_URL", "sqlite:///another.db")
        assert main(["log", "--url", database.url, "from the option"]) == 0
        assert server.answered == 0
    assert len(manager.logs(running.id)) == 2


def test_report_after_end_of_run_is_direct(
    database: Database, running: Execution, manager: ExecutionManager, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("EXECUTION_CORE_SOCKET", str(tmp_path / "gone"))
    monkeypatch.setenv("EXECUTION_CORE_URL", database.url)
    monkeypatch.setenv("EXECUTION_ID", running.id)
    assert main(["log", "late"]) == 0
    assert [entry.message for entry in manager.logs(running.id)] == ["late"]


@pytest.mark.parametrize("reply", [b"", b"no JSON\n"])
def test_report_without_reply_says_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    reply: bytes,
) -> None:  # fmt: skip
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(reply)
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setenv("EXECUTION_CORE_SOCKET", path)
        assert main(["log", "hello"]) == 1
        thread.join()
    assert "it is unknown whether this was recorded" in capsys.readouterr().err


@pytest.mark.parametrize(
    "request_",
    ["", "[]", "1", "{}", '{"words": 5}', '{"words": [1]}', "[" * 100_000,
     '{"words": ["log", "m"], "EXECUTION_ID": {}}'],
)  # fmt: skip
def test_report_malformed_request_changes_nothing(
    database: Database, running: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], request_: str,
) -> None:  # fmt: skip
    with serve(database, database.url, tmp_path, monkeypatch) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
            client.sendall(request_.encode() + b"\n")
            client.shutdown(socket.SHUT_WR)
            assert client.makefile().read() in ("", '{"code": null}\n')
        assert server.answered == 0
    assert capfd.readouterr().err == ""
    assert database.rows("SELECT * FROM execution_logs") == []
    assert running


def test_report_error_is_escaped(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("log", "m", "\x1b[31m postgresql://a:s3cret@host/x") == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "s3cret" not in error


def test_report_help_belongs_to_its_own_process(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call("log", "--help")
    assert "add an entry to the log" in capsys.readouterr().out.lower()
    assert call("log", "--h") == 2


def test_report_inside_run_imports_neither_pydantic_nor_sqlalchemy(tmp_path: Path) -> None:
    script = (
        "import sys; from execution_core.cli.report_client import report_to_run;"
        " report_to_run(['log', 'hello']); print(*sys.modules)"
    )
    code = [sys.executable, "-c", script]
    loaded = set(subprocess.run(code, capture_output=True, text=True, check=True).stdout.split())
    assert "execution_core.cli.report_client" in loaded
    assert not {"sqlalchemy", "pydantic", "argparse", "asyncio"} & loaded
