"""A failover under load: what was answered is on the new primary, and no other session is ended."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import InterfaceError, OperationalError

from execution_core import migrate

from ..conftest import open_manager
from ..support import postgres
from ..support.processes import PROCESSES, race, spawn
from ..support.proxy import proxied
from ..support.standby import power_off, promote, synchronous_standby
from .lost_connections import wait_for

ROUNDS = 5 if "EXECUTION_CORE_PROOF" in os.environ else 1
LONGEST = 20
"""Seconds: far below the limits of a call, because both hosts answer or refuse at once."""
NEXT_PID = Path("/proc/sys/kernel/ns_last_pid")
NO_PIDS = f"NOT TESTED: sessions with the pids of lost ones, which needs write access to {NEXT_PID}"
TRIES = 200


@dataclass
class Answers:
    """The answers that a worker got."""

    moves: list[tuple[str, str]] = field(default_factory=list)
    """Acknowledged transitions: the execution and its new status."""
    not_done: list[tuple[str, str]] = field(default_factory=list)
    """Transitions whose call failed with an error that does not say that the outcome is unknown."""
    unknown: int = 0
    longest: float = 0
    since_error: int = 0
    """Acknowledged transitions since the last error."""


def work(number: int, url: str, stop: Any) -> Answers:
    """Run lifecycles until `stop` is set, without asyncio or with it."""
    answers = Answers()

    def call(status: str, id: str, verb: Callable[..., Any], *arguments: Any) -> Any:
        began = time.monotonic()
        try:
            moved = verb(*arguments)
        except (OperationalError, InterfaceError) as error:
            answers.since_error = 0
            if any("It is unknown" in note for note in getattr(error, "__notes__", ())):
                answers.unknown += 1
            elif id:
                answers.not_done.append((id, status))
            time.sleep(0.05)
            return None
        else:
            answers.moves.append((moved.id, status))
            answers.since_error += 1
            return moved
        finally:
            answers.longest = max(answers.longest, time.monotonic() - began)

    mode = "async" if number % 2 else "sync"
    with asyncio.Runner() as runner, open_manager(url, mode, runner) as manager:
        while not stop.is_set():
            if (job := call("pending", "", manager.create, f"of-{number}")) and (
                call("running", job.id, manager.start, job.id)
            ):
                call("completed", job.id, manager.complete, job.id)
    return answers


@contextmanager
def sessions_with_pids(url: str, pids: list[int]) -> Iterator[list[psycopg.Connection]]:
    """Connect until the server processes have these pids; fewer, if this cannot be done here."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(session)
            for pid in pids
            if (session := session_with_pid(url, pid)) is not None
        ]


def session_with_pid(url: str, pid: int) -> psycopg.Connection | None:
    for _ in range(TRIES):
        try:
            NEXT_PID.write_text(str(pid - 1))
        except OSError:
            return None
        session = psycopg.connect(postgres.dsn(url), autocommit=True)
        if session.info.backend_pid == pid:
            return session
        session.close()
    return None


def moves_on(url: str) -> set[tuple[str, str]]:
    query = "SELECT execution_id, to_status FROM execution_history"
    with psycopg.connect(postgres.dsn(url)) as connection:
        return {(str(id), status) for id, status in connection.execute(query)}


def wait_for_moves(url: str, number: int, working: Future[Any]) -> None:
    """Wait for so many more moves, or until the workers have ended."""
    with psycopg.connect(postgres.dsn(url), autocommit=True) as connection:

        def count() -> int:
            (found,) = connection.execute("SELECT count(*) FROM execution_history").fetchone() or ()
            return int(found)

        enough = count() + number
        wait_for(lambda: working.done() or count() >= enough)


def fail_over_under_load(
    primary: postgres.Server, standby: postgres.Server, tell: Callable[[str], None]
) -> None:
    stop = spawn.Event()
    with proxied(standby.url) as proxy, ThreadPoolExecutor(1) as pool:
        hosts = ",".join(f"127.0.0.1:{make_url(url).port}" for url in (primary.url, proxy.url))
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        working = pool.submit(race, work, url, stop)
        try:
            wait_for_moves(primary.url, 100 * PROCESSES, working)
            # Most calls that lose their connection can ask the new primary for the outcome.
            proxy.admits.clear()
            lost = power_off(primary)
            with sessions_with_pids(standby.url, lost) as sessions:
                promote(standby)
                proxy.admits.set()
                wait_for_moves(standby.url, 100 * PROCESSES, working)
                stop.set()
                answers: list[Answers] = working.result(60)
                if not sessions:
                    tell(NO_PIDS)
                for session in sessions:
                    assert session.execute("SELECT 1").fetchone() == (1,)
        finally:
            stop.set()
    moves = moves_on(standby.url)
    acknowledged = [move for each in answers for move in each.moves]
    assert {*acknowledged} <= moves
    assert moves.isdisjoint(move for each in answers for move in each.not_done)
    longest = max(each.longest for each in answers)
    assert longest < LONGEST
    assert all(each.since_error for each in answers)
    tell(
        f"failover: {len(acknowledged)} acknowledged moves, none lost;"
        f" {sum(each.unknown for each in answers)} unknown outcomes,"
        f" {sum(len(each.not_done) for each in answers)} calls failed and changed nothing;"
        f" longest call {longest:.1f} s; {len(sessions)} sessions with the pid of a lost one"
    )


@pytest.mark.exhaustive
def test_failover_under_load_loses_no_answer_and_ends_no_other_session(
    tell: Callable[[str], None],
) -> None:
    with postgres.server(own=True) as first, ExitStack() as stack:
        primary = first
        migrate.upgrade(primary.url)
        standby = stack.enter_context(synchronous_standby(primary))
        for _ in range(ROUNDS):
            fail_over_under_load(primary, standby, tell)
            # The next standby takes the place of the lost primary.
            port, primary = make_url(primary.url).port, standby
            standby = stack.enter_context(synchronous_standby(primary, port))
        assert primary.postmaster is not None
        primary.postmaster.stop()
