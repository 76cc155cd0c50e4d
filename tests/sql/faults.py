"""Helpers for tests of faulty databases: a call of each verb, and checks after a failure."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import NullPool, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from execution_core import (
    ExecutionManager,
    connect,
)

from ..conftest import Database
from ..support import postgres
from ..support.history import assert_legal
from ..support.states import bring_to

Verb = Callable[[ExecutionManager, str], Any]

RunCli = Callable[..., tuple[int, str]]

MOMENT = timedelta(milliseconds=1)

PATIENCE = 60

# The state of the execution for each verb, and the call. `claim`, `sweep` and `prune` select their
# executions by type, which is the name of the verb.
WRITES: dict[str, tuple[str, Verb]] = {
    "start": ("pending", lambda m, id: m.start(id)),
    "claim": ("pending", lambda m, id: m.claim("claim")),
    "complete": ("running", lambda m, id: m.complete(id, "done")),
    "fail": ("running", lambda m, id: m.fail(id, "no", retryable=True)),
    "timeout": ("running", lambda m, id: m.timeout(id)),
    "sweep": ("running", lambda m, id: m.sweep(stalled_after=MOMENT, type="sweep")),
    "cancel": ("running", lambda m, id: m.cancel(id, "why")),
    "retry": ("failed", lambda m, id: m.retry(id)),
    "replay": ("completed", lambda m, id: m.replay(id)),
    "create": ("running", lambda m, id: m.create("new", parent_id=id)),
    "heartbeat": ("running", lambda m, id: m.heartbeat(id)),
    "update_progress": ("running", lambda m, id: m.update_progress(id, 1, 2)),
    "checkpoint": ("running", lambda m, id: m.checkpoint(id, "k", 1)),
    "advance": ("running", lambda m, id: m.advance(id, 1, 2, key="k", value=1)),
    "log": ("running", lambda m, id: m.log(id, "line")),
    "delete": ("completed", lambda m, id: m.delete(id)),
    "prune": ("completed", lambda m, id: m.prune(timedelta(0), type="prune")),
}

TRANSITIONS = [*WRITES][:10]
"""The verbs that write a row of the history."""


def refusal(call: Callable[..., Any], *arguments: Any) -> str | None:
    """Return the message of the database if it refuses the call."""
    try:
        call(*arguments)
    except DBAPIError as error:
        return str(error.orig)
    return None


class Subjects:
    """One execution for each verb."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ids = {}
        with connect(database.url) as manager:
            for verb, (state, _) in WRITES.items():
                self.ids[verb] = id = bring_to(manager, state).id
                database.run("UPDATE executions SET type = :verb WHERE id = :id", verb=verb, id=id)

    def all_rows(self) -> list[Any]:
        """Return all rows, read on a new connection."""
        engine = create_engine(self.database.url, poolclass=NullPool)
        with engine.connect() as connection:
            return [
                sorted(map(str, connection.execute(text(f"SELECT * FROM {table}"))))
                for table in sorted(inspect(connection).get_table_names())
            ]

    def call(self, manager: ExecutionManager, verb: str) -> Any:
        return WRITES[verb][1](manager, self.ids[verb])

    def read(self, manager: ExecutionManager) -> None:
        """Call each verb that only reads."""
        id = self.ids["heartbeat"]
        assert manager.get(id) in manager.list(limit=1000)
        assert manager.logs(id) == []
        assert len(manager.history(id)) > len(manager.attempts(id)) > 0
        assert manager.find_by_idempotency_key("unused") is None

    def refused(
        self, manager: ExecutionManager, *messages: str, verbs: Iterable[str] = WRITES
    ) -> list[str]:
        """Call the verbs; return those that the database refuses, which must change nothing."""
        refused, before = [], self.all_rows()
        for verb in verbs:
            message = refusal(self.call, manager, verb)
            if message is not None:
                assert any(each in message for each in messages), (verb, message)
                assert self.all_rows() == before, verb
                refused.append(verb)
            else:
                before = self.all_rows()
        return refused

    def assert_usable(self, manager: ExecutionManager) -> None:
        """Check that every verb succeeds and every row agrees with its history."""
        self.read(manager)
        for verb in WRITES:
            assert self.call(manager, verb) not in ([], 0), verb
        assert_legal(self.database)


def assert_one_line(result: tuple[int, str], messages: Iterable[str], advice: str = "") -> None:
    """Check that the command line failed with exit code 1, a one-line error, and the advice."""
    code, output = result
    assert code == 1
    line, _, rest = output.partition("\n")
    assert line.startswith("execution-core: ")
    assert any(each in line for each in messages), output
    assert rest == advice


class OwnServer:
    """A server of this test module, which tests may stop and start."""

    def __init__(self, server: postgres.Server) -> None:
        assert server.postmaster is not None
        self.server, self.postmaster, self.url = server, server.postmaster, server.url

    def run(self, *statements: str) -> Any:
        with psycopg.connect(postgres.dsn(self.url), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchone() if cursor.description else None

    def connection_error(self) -> str:
        """Return the error of a connection attempt; empty if it succeeds."""
        try:
            self.run("SELECT 1")
        except psycopg.OperationalError as error:
            return str(error)
        return ""
