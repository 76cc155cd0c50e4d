"""Lost connections on a server with a synchronous standby: what is answered is on the standby."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from execution_core import connect, migrate
from execution_core.sql.driver.engine import create_sync_engine

from ..conftest import Database
from ..support import postgres
from ..support.proxy import Cut, Proxy, proxied
from ..support.standby import synchronous_standby
from .lost_connections import wait_for

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Database, postgres.Server]]:
    """A primary, and the server that is its synchronous standby."""
    with postgres.server(own=True) as primary:
        migrate.upgrade(primary.url)
        with synchronous_standby(primary) as standby:
            engine = create_sync_engine(primary.url)
            yield Database("postgresql", primary.url, engine), standby
            engine.dispose()
            # Its own shutdown must not wait for the standby.
            assert primary.postmaster is not None
            primary.postmaster.stop()


@pytest.fixture
def stopped_standby(pair: tuple[Database, postgres.Server]) -> Iterator[Any]:
    """The postmaster of the standby, stopped as long as the test does not start it."""
    postmaster: Any = pair[1].postmaster
    postmaster.stop()
    yield postmaster
    if not postmaster.runs:
        postmaster.start()


@pytest.fixture
def cutting(pair: tuple[Database, postgres.Server]) -> Iterator[Proxy]:
    with proxied(pair[0].url) as proxy:
        yield proxy


@pytest.mark.exhaustive
def test_lost_connection_waiting_for_standby_is_left_alone(
    pair: tuple[Database, postgres.Server], cutting: Proxy, request: pytest.FixtureRequest
) -> None:
    """To end it would make a commit visible that the standby does not have."""
    database = pair[0]
    with connect(cutting.url) as manager, connect(database.url) as other:
        id = manager.create("work").id
        standby = request.getfixturevalue("stopped_standby")
        cutting.cut(Cut.RACING)
        with pytest.raises(OperationalError) as caught:
            manager.start(id)
        assert "It is unknown whether start was" in caught.value.__notes__[0]
        assert len(database.rows(WAITING)) == 1
        assert other.get(id).status == "pending"
        standby.start()
        assert wait_for(lambda: other.get(id).status == "running")


def test_lost_connection_commit_found_is_answered_when_standby_has_it(
    pair: tuple[Database, postgres.Server], cutting: Proxy, request: pytest.FixtureRequest
) -> None:
    """An administrator ends the waiting process: its commit becomes visible, and only here."""
    database = pair[0]
    with connect(cutting.url) as manager, ThreadPoolExecutor() as pool:
        id = manager.create("work").id
        standby = request.getfixturevalue("stopped_standby")
        call = pool.submit(manager.start, id, worker="me")
        (waiting,) = wait_for(lambda: database.rows(WAITING))
        database.rows("SELECT pg_terminate_backend(:pid, 5000)", pid=waiting["pid"])
        wait_for(lambda: database.rows("SELECT 1 FROM executions WHERE worker = 'me'"))
        # The answer waits as well: now it is another process that waits for the standby.
        (again,) = wait_for(lambda: database.rows(WAITING))
        assert again["pid"] != waiting["pid"]
        assert not call.done()
        standby.start()
        assert call.result(30).worker == "me"
