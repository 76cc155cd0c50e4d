"""`python -m proof.batches` in its short form, with its control."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from proof.batches import QUICK, run
from proof.chaos import fork_server

from ..conftest import Database
from ..support import processes

fork_server.set_forkserver_preload(processes.PRELOAD)


@pytest.mark.exhaustive
def test_proof_batches_killed_worker_loads_each_row_once(
    database: Database, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    seed = random.randrange(10**6)
    try:
        column = run(database.name, database.url, seed, tmp_path, QUICK)
    finally:
        database.run("DROP TABLE IF EXISTS loaded")
    assert column.failures == [], f"seed {seed}"
    tell(
        f"{database.name}: {QUICK.rows} rows in chunks, {QUICK.kills} kills, every row once;"
        f" the control lost {column.figures['control: rows missing']}"
    )
