"""The command line, called in this process."""

import json
from typing import Any

import pytest

from execution_core import ExecutionManager, SqlExecutionStore
from execution_core.cli import main

from ..conftest import Database


class Shell:
    """Run the command line in this process on a database."""

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
