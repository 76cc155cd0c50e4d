"""The stores that workers write with: the library's own, whose tokens are told; and a wrong one."""

import builtins
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import create_engine, event, make_url, update
from sqlalchemy.ext.asyncio import create_async_engine

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    Execution,
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
)
from execution_core.core.json_values import to_json
from execution_core.core.validation import MAX_PAGE
from execution_core.sql.async_store import AsyncOwningStore
from execution_core.sql.driver import engine as engines
from execution_core.sql.schema.tables import executions
from execution_core.sql.store import OwningStore
from execution_core.stores import BatchTransition, NewExecution, Page, Returning, Transition

from .journal import Journal


class Journaled:
    """Any store, with a journal of the tokens that it writes with."""

    journal: Journal
    engine: Any

    def _token(self) -> str:
        token: str = super()._token()  # type: ignore[misc]
        self.journal.token(token)
        return token

    def create(self, creation: NewExecution) -> Any:
        """Write down the id, which is the token of a creation."""
        self.journal.token(creation.id)
        return super().create(creation)  # type: ignore[misc]


class OwnStore(Journaled, OwningStore):
    """What `connect` makes."""


class HostStore(Journaled, SqlExecutionStore):
    """On an engine of the host's."""

    def close(self) -> None:
        """Do what the host does at its end."""
        self.engine.dispose()


class OwnAsyncStore(Journaled, AsyncOwningStore):
    """What `connect_async` makes."""


class HostAsyncStore(Journaled, AsyncSqlExecutionStore):
    """On an engine of the host's, for asyncio."""

    async def close(self) -> None:
        """Do what the host does at its end."""
        await self.engine.dispose()


class ReadThenWriteStore(HostStore):
    """What is not to be done: it reads, decides, and writes whatever has happened meanwhile."""

    def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Any:  # Execution | ExecutionStatus | None, as `returning` says
        """Make a SELECT, and an UPDATE that asks for nothing but the id."""
        found = self.find_by_id(id)
        moved = found and transition.apply(found, datetime.now(UTC))
        if moved:
            self._overwrite(moved)
        return moved if moved is None or returning == "execution" else moved.status

    def update_many(self, batch: BatchTransition) -> builtins.list[Execution]:
        """The same, for many."""
        everything = self.list(Page(None, None, None, MAX_PAGE, None))
        moved = batch.apply(everything, datetime.now(UTC))
        for each in moved:
            self._overwrite(each)
        return moved

    def _overwrite(self, execution: Execution) -> None:
        progress = execution.progress
        new = {
            **{name: getattr(execution, name) for name in PLAIN},
            **{name: to_json(name, getattr(execution, name)) for name in JSON},
            "result": execution.result and to_json("result", execution.result),
            "progress_current": progress and progress.current,
            "progress_total": progress and progress.total,
            "progress_percent": progress and progress.percent,
            "progress_message": progress and progress.message,
            "write_token": self._token(),
        }
        with self.engine.begin() as connection:
            connection.execute(
                update(executions).where(executions.c.id == execution.id).values(new)
            )


PLAIN = (
    *("status", "error", "attempts", "worker", "updated_at", "started_at", "completed_at"),
    *("deadline_at", "heartbeat_at", "due_at"),
)
JSON = ("metadata", "checkpoints")

KINDS = ("own", "host", "own async", "host async")
BROKEN = "read then write"


def manager_of(kind: str, url: str, journal: Journal) -> Any:
    """Return a manager of this kind, whose tokens and lost connections are written down."""
    asynchronous = "async" in kind
    own = kind.startswith("own")
    make: Any = engines.create_async_engine if asynchronous else engines.create_sync_engine
    engine = make(url, exclusive=True) if own else host_engine(url, asynchronous=asynchronous)
    event.listen(getattr(engine, "sync_engine", engine), "invalidate", journal.cut)
    store: Any = {
        "own": OwnStore,
        "host": HostStore,
        "own async": OwnAsyncStore,
        "host async": HostAsyncStore,
        BROKEN: ReadThenWriteStore,
    }[kind](engine)
    store.journal, store.engine = journal, engine
    return (AsyncExecutionManager if asynchronous else ExecutionManager)(store)


def host_engine(url: str, *, asynchronous: bool) -> Any:
    """Return an engine as a host makes it."""
    if make_url(url).get_backend_name() == "postgresql":
        return create_async_engine(url) if asynchronous else create_engine(url)
    url = url.replace("sqlite:", "sqlite+aiosqlite:") if asynchronous else url
    make: Any = create_async_engine if asynchronous else create_engine
    return configure_sqlite(make(url))
