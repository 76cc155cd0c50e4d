"""`make proof`: whoever races and whatever breaks, no illegal move and no lost update.

Workers create, get, start, claim, complete, fail, time out, sweep, cancel and retry the same
executions, and write heartbeats, progress and checkpoints, while they are killed, their connections
are cut and their server crashes; then everything that they were answered is checked. After that the
tests run that leave nothing to chance. It takes some minutes, and ends with 1 when anything is
wrong.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.__main__ import machine
from benchmarks.databases import Databases
from tests.support import postgres

from . import deterministic, report, targets
from .chaos import Plan, fresh
from .report import Proof
from .trial import CONTROL, FAULTS, OPERATIONS, QUICK, Trial, trial

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"


def main() -> int:
    """Do it, print it, and judge it."""
    parser = argparse.ArgumentParser(
        prog="make proof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="decides what is done and what fails; not when")
    parser.add_argument("--seconds", type=float, default=30, help="of chaos, on each database")
    parser.add_argument(
        "--quick", action="store_true", help="only see that it runs: chaos for seconds, no tests"
    )
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md as well")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    fresh.set_forkserver_preload(["proof.chaos"])
    folder = Path(tempfile.mkdtemp(prefix="execution-core-proof-"))
    plan = QUICK if arguments.quick else Plan(arguments.seconds, OPERATIONS, FAULTS)
    proof = prove(seed, plan, folder, quick=arguments.quick)
    print(f"\n{report.text(proof)}\n")
    how = " (quick)" if arguments.quick else ""
    failures = list(report.failures(proof))
    if failures:
        print("\n".join(failures))
        print(f"\nFAILED{how}, see above. The journals are in {folder}")
        return 1
    shutil.rmtree(folder)
    print(f"PASSED: no illegal move and no lost update was found{how}.")
    if arguments.write:
        report.update(PAGE, proof)
    return 0


def prove(seed: int, plan: Plan, folder: Path, *, quick: bool) -> Proof:
    """Try everything."""
    trials: list[Trial] = []
    controls: list[Trial] = []
    with postgres.server(own=True, durable=True) as server:
        on = machine(Databases(server, folder))
        for kind, tried, of in (("chaos", trials, plan), ("control", controls, CONTROL)):
            for n, make in enumerate((targets.postgresql, targets.sqlite)):
                place = folder / f"{kind}-{n}"
                place.mkdir()
                with make(server, place) as target, timed(f"{kind}, {target.name}"):
                    tried.append(trial(target, of, seed, place / "journals"))
    tests = []
    if not quick:
        with timed("tests"):
            tests = deterministic.run()
    return Proof(seed, on, trials, controls, tests)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    begun = time.monotonic()
    print(f"  {what} ...", flush=True)
    yield
    print(f"  {what}: {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
