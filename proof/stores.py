"""The stores of the workers: the library's, with journaled tokens, and a broken one."""

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
from execution_core.stores import BatchTransition, NewExecution, Returning, Transition
from execution_core.testing.pages import build_page

from .journal import Journal


class Journaled:
    """A store that records its write tokens in a journal."""

    journal: Journal
    engine: Any

    def _token(self) -> str:
        token: str = super()._token()  # type: ignore[misc]
        self.journal.token(token)
        return token

    def create(self, creation: NewExecution) -> Any:
        """Record the id, which serves as the token of a creation."""
        self.journal.token(creation.id)
        return super().create(creation)  # type: ignore[misc]


class OwnStore(Journaled, OwningStore):
    """The store of `connect`."""


class HostStore(Journaled, SqlExecutionStore):
    """A store on a host's engine."""

    def close(self) -> None:
        """Dispose of the engine, as the host does."""
        self.engine.dispose()


class OwnAsyncStore(Journaled, AsyncOwningStore):
    """The store of `connect_async`."""


class HostAsyncStore(Journaled, AsyncSqlExecutionStore):
    """A store on a host's engine, for asyncio."""

    async def close(self) -> None:
        """Dispose of the engine, as the host does."""
        await self.engine.dispose()


class ReadThenWriteStore(HostStore):
    """A broken store: it reads, decides, and writes without a condition."""

    def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Any:  # Execution | ExecutionStatus | None, as `returning` says
        """Run a SELECT, then an UPDATE whose only condition is the id."""
        found = self.find_by_id(id)
        moved = found and transition.apply(found, datetime.now(UTC), ())
        if moved:
            self._overwrite(moved)
        return moved if moved is None or returning == "execution" else moved.status

    def update_many(self, batch: BatchTransition) -> builtins.list[Execution]:
        """Do the same for several executions."""
        everything = self.list(build_page(limit=MAX_PAGE))
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
    """Return a manager of this kind whose tokens and lost connections are journaled."""
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
    """Return an engine as a host creates it."""
    if make_url(url).get_backend_name() == "postgresql":
        return create_async_engine(url) if asynchronous else create_engine(url)
    url = url.replace("sqlite:", "sqlite+aiosqlite:") if asynchronous else url
    make: Any = create_async_engine if asynchronous else create_engine
    return configure_sqlite(make(url))
