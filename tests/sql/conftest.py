"""Fixtures for tests that break a database, a server or a connection."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from execution_core import (
    migrate,
)
from execution_core.cli import main
from execution_core.sql.driver.engine import create_sync_engine

from ..conftest import Database
from ..support import postgres
from ..support.proxy import Proxy, proxied
from .faults import (
    OwnServer,
    RunCli,
)


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> RunCli:
    """A function that runs the CLI and returns its exit code and standard error."""

    def call(url: str, name: str, *arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main([name, "--url", url, *arguments])
        return code, capsys.readouterr().err

    return call


@pytest.fixture(params=["sqlite", "postgresql"])
def own_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A migrated database of this test alone, which it may damage."""
    url = f"sqlite:///{tmp_path}/executions.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("empty_postgres")(f"faults_{secrets.token_hex(4)}")
    migrate.upgrade(url)
    engine = create_sync_engine(url)
    yield Database(request.param, url, engine)
    engine.dispose()


@pytest.fixture(scope="session")
def own_server() -> Iterator[OwnServer]:
    with postgres.server(own=True) as server:
        migrate.upgrade(server.url)
        yield OwnServer(server)


@pytest.fixture
def proxy(postgres_database: Database) -> Iterator[Proxy]:
    """A proxy in front of the empty PostgreSQL database, which cuts connections."""
    postgres_database.empty()
    with proxied(postgres_database.url) as proxy:
        yield proxy
