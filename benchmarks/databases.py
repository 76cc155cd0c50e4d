"""Databases to measure on: a durable PostgreSQL and SQLite files on the same disk."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import NullPool, create_engine, make_url, text
from tests.support import postgres


class Databases:
    """Creates and drops databases, and runs single statements in them."""

    def __init__(self, server: postgres.Server, folder: Path) -> None:
        self.server = server
        self._folder = folder
        self._numbers = count()

    def postgresql(self, *, durable: bool = True) -> str:
        """Create an empty PostgreSQL database and return its URL."""
        name = f"bench_{os.getpid()}_{next(self._numbers)}"
        self.query(self.server.url, f"CREATE DATABASE {name}")
        if not durable:
            self.query(self.server.url, f"ALTER DATABASE {name} SET synchronous_commit = off")
        return make_url(self.server.url).set(database=name).render_as_string(hide_password=False)

    def sqlite(self) -> str:
        """Return the URL of a SQLite file that does not exist yet."""
        return f"sqlite:///{self._folder / f'{next(self._numbers)}.db'}"

    def drop(self, url: str) -> None:
        """Drop the database or delete its files."""
        at = make_url(url)
        if at.get_backend_name() == "postgresql":
            self.query(self.server.url, f"DROP DATABASE {at.database} WITH (FORCE)")
        else:
            for path in self._folder.glob(f"{Path(at.database or '').name}*"):
                path.unlink()

    @staticmethod
    def query(url: str, statement: str, **parameters: Any) -> Any:
        """Run one statement on its own connection; return the first value of its result, if any."""
        autocommit = "AUTOCOMMIT" if url.startswith("postgresql") else None
        engine = create_engine(url, poolclass=NullPool, isolation_level=autocommit)
        with engine.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return result.scalar() if result.returns_rows else None


@contextmanager
def databases() -> Iterator[Databases]:
    """Start a PostgreSQL server with durable commits.

    Raises:
        RuntimeError: The server of TEST_POSTGRES_URL confirms commits before they are on disk.
    """
    folder = Path(tempfile.mkdtemp(prefix="execution-core-bench-"))
    try:
        with postgres.server(durable=True) as server:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                if (value := Databases.query(server.url, f"SHOW {setting}")) != "on":
                    raise RuntimeError(f"the server has {setting} = {value}; set it to on")
            yield Databases(server, folder)
    finally:
        shutil.rmtree(folder)
