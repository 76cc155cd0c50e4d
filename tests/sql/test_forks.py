"""A manager of `connect` is used by a process and by its forked children."""

import os
import subprocess
import sys

import pytest

from ..conftest import Database
from ..support.history import assert_legal

SCRIPT = """
import asyncio, os, sys
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from execution_core import (
    AsyncExecutionManager, AsyncSqlExecutionStore, ExecutionManager, SqlExecutionStore,
    configure_sqlite, connect, connect_async,
)

owner, mode, url = sys.argv[1:]
runner = asyncio.Runner()
if owner == "own":
    manager = connect(url) if mode == "sync" else connect_async(url)
else:
    engine = create_engine(url) if mode == "sync" else create_async_engine(
        url.replace("sqlite:", "sqlite+aiosqlite:")
    )
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    manager = (
        ExecutionManager(SqlExecutionStore(engine))
        if mode == "sync" else AsyncExecutionManager(AsyncSqlExecutionStore(engine))
    )

def call(answer):
    return answer if mode == "sync" else runner.run(await_(answer))

async def await_(answer):
    return await answer

def work(name):
    for n in range(50):
        job = call(manager.create(name, {"n": n}))
        assert call(manager.start(job.id, worker=name)).worker == name
        assert call(manager.get(job.id)).payload == {"n": n}
        assert call(manager.complete(job.id, n)).result == n

work("before")
children = []
for number in range(3):
    if not (child := os.fork()):
        inherited, runner = runner, asyncio.Runner()  # kept: it belongs to the parent
        try:
            work(f"child {number}")
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    children.append(child)
work("parent")
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
work("after")
if owner == "own":
    call(manager.close())
elif mode == "sync":
    engine.dispose()
else:
    runner.run(engine.dispose())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("owner", ["own", "host"])
def test_fork_children_use_connections_of_their_own(
    database: Database, mode: str, owner: str
) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, owner, mode, database.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    rows = database.rows("SELECT type, status, count(*) AS n FROM executions GROUP BY type, status")
    types = ("before", "child 0", "child 1", "child 2", "parent", "after")
    assert {row["type"]: (row["status"], row["n"]) for row in rows} == dict.fromkeys(
        types, ("completed", 50)
    )
    assert_legal(database)
