"""What the parts of the proof share that also have a command of their own."""

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.__main__ import machine
from benchmarks.databases import Databases
from sqlalchemy import Engine, create_engine
from tests.support import postgres

from execution_core import configure_sqlite, migrate

from .chaos import fork_server
from .report import Column, PartResult, update_part
from .targets import create_database

PAGE: Final = Path(__file__).parents[1] / "docs" / "reliability.md"


@dataclass(frozen=True)
class Part:
    """A part of the proof."""

    name: str
    title: str
    run: Callable[[str, str, int, Path, bool], Column]
    """Run it: the name and the URL of an empty database, a seed, a folder, whether it is quick."""


def prove(part: Part, server: postgres.Server, folder: Path, seed: int, quick: bool) -> PartResult:
    """Run a part on an empty database of each kind."""
    file = f"sqlite:///{folder / part.name}.db"
    migrate.upgrade(file)
    columns = []
    for name, url in (("PostgreSQL", create_database(server)), ("SQLite", file)):
        with timed(f"{part.name}, {name}"):
            columns.append(part.run(name, url, seed, folder, quick))
    heading = f"Seed {seed}. {machine(Databases(server, folder))}"
    return PartResult(part.name, part.title, heading, columns)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print a step, and how long it took."""
    begun = time.monotonic()
    print(f"  {what} ...", flush=True)
    yield
    print(f"  {what}: {time.monotonic() - begun:.0f} s", flush=True)


def main(part: Part, description: str | None) -> int:
    """Run a part as a command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m proof.{part.name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="determines the choices, not the timing")
    parser.add_argument("--quick", action="store_true", help="a short check")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md as well")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    fork_server.set_forkserver_preload(["proof.chaos"])
    folder = Path(tempfile.mkdtemp(prefix="execution-core-proof-"))
    try:
        with postgres.server(own=True, durable=True) as server:
            result = prove(part, server, folder, seed, arguments.quick)
    finally:
        shutil.rmtree(folder)
    print(f"\n{result.text()}\n")
    if failures := list(result.failures()):
        print("\n".join(failures), "FAILED, see above.", sep="\n\n")
        return 1
    print("PASSED")
    if arguments.write:
        update_part(PAGE, result)
    return 0


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    """Create an engine as a service does, and dispose of it at the end."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    try:
        yield engine
    finally:
        engine.dispose()
