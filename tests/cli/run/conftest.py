"""`execution-core run` in a folder of its own, on a database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ...conftest import Database, open_database
from .shell import Shell


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(database, tmp_path)
    yield shell
    shell.close()


@pytest.fixture
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    """SQLite only, for behaviour that does not depend on the database."""
    with open_database("sqlite", request) as database:
        shell = Shell(database, tmp_path)
        yield shell
        shell.close()
