"""A network that drops all packets without an error: every call ends in time."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from execution_core import migrate
from execution_core.sql.driver.engine import GRACE_SECONDS

from ..support import network, postgres
from .lost_connections import open_bound_manager

pytestmark = pytest.mark.skipif(
    bool(problem := network.problem()),
    reason=f"NOT TESTED: no network that drops packets: {problem}",
)
CONNECTING = 2
"""Seconds: the least that libpq accepts."""
SLACK = 2
UNKNOWN = "It is unknown whether start was"


@contextmanager
def own_server(mode: str, **bounds: str) -> Iterator[tuple[Any, Any]]:
    """Start a server in this network; yield a manager and a function that opens a further one."""
    with postgres.server(own=True) as server, asyncio.Runner() as runner:
        migrate.upgrade(server.url)
        query = {"connect_timeout": str(CONNECTING), **bounds}
        url: Any = make_url(server.url).update_query_dict(query)
        with (
            open_bound_manager(url, mode, "own", runner) as manager,
            open_bound_manager(url, mode, "own", runner) as other,
        ):
            yield manager, other


def seconds_and_message(call: Callable[[], Any]) -> tuple[float, str]:
    """Return how long a call took to fail, and its error with its notes."""
    began = time.monotonic()
    with pytest.raises(OperationalError) as caught:
        call()
    seconds, error = time.monotonic() - began, caught.value
    message = " ".join([str(error), *getattr(error, "__notes__", ())])
    # An error keeps the socket that could not connect. The server would wait for it when it stops.
    del caught, error
    gc.collect()
    return seconds, message


@pytest.mark.slow
def test_dropped_packets_call_ends_within_tcp_user_timeout(
    mode: str, tell: Callable[[str], None]
) -> None:
    """The kernel gives up, and no new connection can be made to find out the outcome."""

    def run() -> None:
        with own_server(mode, tcp_user_timeout="1500") as (manager, _):
            id = manager.create("work").id
            with network.packets_dropped():
                seconds, message = seconds_and_message(lambda: manager.start(id))
            # The kernel notices the end of its timeout when it sends the packet again.
            assert 1.5 <= seconds < 2 * 1.5 + CONNECTING + SLACK
            assert UNKNOWN in message
            assert manager.get(id).status == "pending"
            assert manager.start(id).attempts == 1
            tell(f"network drops packets, {mode}: the call ended after {seconds:.1f} s")

    network.in_namespace(run)


@pytest.mark.exhaustive
def test_dropped_packets_call_ends_within_call_timeout(mode: str) -> None:
    def run() -> None:
        with own_server(mode, tcp_user_timeout="0", call_timeout="1") as (manager, _):
            id = manager.create("work").id
            with network.packets_dropped():
                seconds, message = seconds_and_message(lambda: manager.start(id))
            assert 1 + GRACE_SECONDS <= seconds < 1 + GRACE_SECONDS + CONNECTING + SLACK
            assert UNKNOWN in message
            assert manager.start(id).attempts == 1

    network.in_namespace(run)


@pytest.mark.slow
def test_dropped_packets_connecting_ends_within_connect_timeout(mode: str) -> None:
    def run() -> None:
        with own_server(mode) as (manager, new_manager):
            id = manager.create("work").id
            with network.packets_dropped():
                seconds, message = seconds_and_message(lambda: new_manager.start(id))
            assert seconds < CONNECTING + SLACK
            assert "timeout" in message
            assert UNKNOWN not in message  # nothing was sent
            assert new_manager.start(id).attempts == 1

    network.in_namespace(run)
