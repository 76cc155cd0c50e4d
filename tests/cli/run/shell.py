"""Call `execution-core run` with real commands and processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from execution_core import Execution, ExecutionManager, SqlExecutionStore

from ...conftest import Database

PROGRAM = Path(sys.executable).with_name("execution-core")
PATIENCE = 30


class Shell:
    """Call `execution-core run` in a directory of its own, on a database."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.manager = ExecutionManager(SqlExecutionStore(database.engine))
        self.started: list[subprocess.Popen[bytes]] = []

    def begin(self, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
        program = options.pop("program", [PROGRAM])
        url = options.pop("url", self.database.url)
        environment = os.environ | {"EXECUTION_CORE_URL": url, "PATH": path()}
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            [*program, "run", *arguments], cwd=self.folder, env=environment, **(pipes | options)
        )
        self.started.append(cast("subprocess.Popen[bytes]", process))
        return self.started[-1]

    def run(self, *arguments: str, **options: Any) -> tuple[int, bytes, str]:
        return self.end(self.begin(*arguments, **options))

    def end(self, process: "subprocess.Popen[bytes]") -> tuple[int, bytes, str]:
        out, err = process.communicate(timeout=PATIENCE)
        message = (err or b"").decode()
        assert not any(each in message for each in ("Traceback", "..", "?.")), message
        return process.returncode, out, message

    @property
    def execution(self) -> Execution:
        (execution,) = self.manager.list()
        return execution

    def is_(self, status: str) -> bool:
        return [each.status for each in self.manager.list()] == [status]

    def attempts(self) -> list[tuple[str, str | None]]:
        """Return outcome and error code of each attempt."""
        error = "error ->> 'code'"
        rows = self.database.rows(
            f"SELECT outcome, {error} AS code FROM execution_attempts ORDER BY attempt"
        )
        return [(row["outcome"], row["code"]) for row in rows]

    def pids(self) -> list[int]:
        written = self.folder / "pids"
        return [int(line) for line in written.read_text().split()] if written.exists() else []

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def path() -> str:
    return f"{PROGRAM.parent}:{os.environ['PATH']}"


def wait_for(condition: Callable[[], Any]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, "the condition did not become true"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A zombie: an orphan that has ended but was not reaped.
    stat = Path(f"/proc/{pid}/stat")
    with suppress(FileNotFoundError):
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    return True
