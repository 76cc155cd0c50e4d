"""`connect`: a manager over an engine of its own."""

from sqlalchemy import URL, Engine

from ..manager import ExecutionManager
from .direct import Direct, OwnDirect
from .engines import create_sync_engine
from .store import SqlExecutionStore


def connect(url: str | URL) -> ExecutionManager:
    """Return a manager over an engine of its own: `with connect("sqlite:///jobs.db") as manager:`.

    Args:
        url: a SQLAlchemy URL for PostgreSQL (psycopg) or SQLite, whose schema is migrated.

    Returns:
        A manager whose `close()` disposes of the engine; it connects with its first call.

    Raises:
        InvalidValue: it is no such URL.
    """
    return ExecutionManager(_OwningStore(create_sync_engine(url, own=True)))


class _OwningStore(SqlExecutionStore):
    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        if not self.shares_connection:
            self._bind = OwnDirect(engine)

    def close(self) -> None:
        if isinstance(self._bind, Direct):  # a joined store holds the caller's transaction
            self._bind.close()
