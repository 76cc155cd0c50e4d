"""Check with concurrent workers and injected faults: no invalid transition, no lost update.

Workers create, get, start, claim, complete, fail, time out, sweep, cancel and retry the same
executions, and write heartbeats, progress and checkpoints. Meanwhile they are killed, their
connections are cut, and their server crashes or fails over. Then every answer that they got is
checked. Then come batches and trees whose workers are killed (`python -m proof.batches` and
`python -m proof.trees` run them alone), and the deterministic tests. This takes over 20 minutes;
the exit code is 1 if anything is wrong.
"""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.__main__ import machine
from benchmarks.databases import Databases
from tests.support import postgres
from tests.support.pgbouncer import BINARY, MISSING

from . import batches, deterministic, parts, report, targets, trees
from .chaos import Plan, fork_server
from .parts import PAGE, timed
from .report import Proof
from .trial import CONTROL, FAULTS, OPERATIONS, QUICK, Trial, trial

PARTS = (batches.PART, trees.PART)


def main() -> int:
    """Run the proof, print its figures and its verdict."""
    parser = argparse.ArgumentParser(
        prog="make proof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed", type=int, help="determines the calls and the faults, not their timing"
    )
    parser.add_argument(
        "--seconds", type=float, default=30, help="of fault injection, on each database"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short check: faults for a few seconds, no tests"
    )
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md as well")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    fork_server.set_forkserver_preload(["proof.chaos"])
    folder = Path(tempfile.mkdtemp(prefix="execution-core-proof-"))
    plan = QUICK if arguments.quick else Plan(arguments.seconds, OPERATIONS, FAULTS)
    proof = prove(seed, plan, folder, quick=arguments.quick)
    print(f"\n{report.text(proof)}\n")
    for part in proof.parts:
        print(f"{part.text()}\n")
    mode = " (quick)" if arguments.quick else ""
    failures = list(report.failures(proof))
    if failures:
        print("\n".join(failures))
        print(f"\nFAILED{mode}, see above. The journals are in {folder}")
        return 1
    shutil.rmtree(folder)
    print(f"PASSED: no invalid transition and no lost update was found{mode}.")
    if arguments.write:
        report.update(PAGE, proof)
    return 0


def prove(seed: int, plan: Plan, folder: Path, *, quick: bool) -> Proof:
    """Run all trials, their controls, the parts, and the tests."""
    trials: list[Trial] = []
    controls: list[Trial] = []
    if BINARY is None:
        print(MISSING, flush=True)
    with postgres.server(own=True, durable=True) as server:
        machine_name = machine(Databases(server, folder))
        for kind, results, trial_plan in (("chaos", trials, plan), ("control", controls, CONTROL)):
            # The controls test the checker, for which two databases are enough.
            grounds = targets.GROUNDS if kind == "chaos" else targets.GROUNDS[:2]
            for n, make in enumerate(grounds):
                trial_folder = folder / f"{kind}-{n}"
                trial_folder.mkdir()
                with make(server, trial_folder) as target, timed(f"{kind}, {target.name}"):
                    results.append(trial(target, trial_plan, seed, trial_folder / "journals"))
        results_of_parts = [parts.prove(part, server, folder, seed, quick) for part in PARTS]
    tests = []
    if not quick:
        with timed("tests"):
            tests = deterministic.run()
    return Proof(seed, machine_name, trials, controls, tests, results_of_parts)


if __name__ == "__main__":
    sys.exit(main())
