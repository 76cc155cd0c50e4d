"""Plain SQL over psycopg: one connection, autocommit, prepared."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import make_url

from execution_core import migrate

from . import plain_sql
from .plain_sql import POSTGRESQL, Row


def version() -> str:
    """Return the name and version that the figures show."""
    return f"psycopg {psycopg.__version__}"


@contextmanager
def lifecycles(url: str) -> Iterator[Callable[[int], float]]:
    """Yield a function that runs a number of lifecycles and returns the seconds they took."""
    migrate.upgrade(url)
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.cursor()

        def execute(statement: str, parameters: tuple[Any, ...]) -> Row:
            found = cursor.execute(statement, parameters, prepare=True).fetchone()
            if found is None:
                raise RuntimeError("a statement matched no row")
            return Row(*found)

        def run(count: int) -> float:
            begun = time.perf_counter()
            for _ in range(count):
                plain_sql.lifecycle(execute, POSTGRESQL)
            return time.perf_counter() - begun

        yield run
