"""Processes that share nothing with the test but the database."""

import multiprocessing
import queue
from collections.abc import Callable
from typing import Any

import pytest

PROCESSES = 8
"""How many processes `race` starts."""
PRELOAD = [
    *("tests.conftest", "proof.chaos"),
    *("sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.aiosqlite"),
]
"""What the fork server imports once, so that a process starts quickly."""

spawn = multiprocessing.get_context("forkserver")
spawn.set_forkserver_preload(PRELOAD)


def race(work: Callable[..., Any], *args: Any) -> list[Any]:
    """Run `work(number, *args)` in several processes that start together; return their answers."""
    barrier, answers = spawn.Barrier(PROCESSES), spawn.Queue()
    processes = [
        spawn.Process(target=_run, args=(work, barrier, answers, n, *args))
        for n in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    try:
        collected = [answers.get(timeout=120) for _ in processes]
    except queue.Empty:
        pytest.fail("a process gave no answer")
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    for answer in collected:
        if isinstance(answer, BaseException):
            raise answer
    return collected


def _run(work: Callable[..., Any], barrier: Any, answers: Any, number: int, *args: Any) -> None:
    try:
        barrier.wait(60)
        answers.put(work(number, *args))
    except BaseException as error:
        answers.put(RuntimeError(f"{type(error).__name__}: {error}"))
