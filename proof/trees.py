"""Work on a tree of executions with workers that are killed, and cancel parts of it.

A root creates batches, a batch creates items; both end with their children. Some items fail for
good. `execution_core.worker.Worker` processes do all of it, a sweeper retries what killed ones
leave. At the end each execution must have finished once, and each parent as its children did.
"""

import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import select

from execution_core import ExecutionManager, connect
from execution_core.tables import execution_history, executions

from . import checker
from .chaos import read_executions
from .model import LIVE
from .observed import ObservedExecution
from .parts import Part, main, opened
from .report import Column
from .targets import TIMEOUT, wait_until
from .tree_workers import DEFECT, STALLED, Plan, Workers

FINISHED: Final = ("completed", "failed", "timed_out", "cancelled")
QUICK: Final = Plan(batches=20, items=20, kills=4, cancellations=2)


@dataclass(frozen=True)
class Evidence:
    """What a run left."""

    executions: list[ObservedExecution]
    chosen: set[str]
    """The batches that were cancelled with their items, if they had not finished before."""
    left_live: int
    """The executions that were live when `cancel_tree` returned, of batches that had items."""
    stalled: Counter[str]
    """The attempts that a sweep found without a worker, by type."""
    seconds: float


def run_tree(url: str, plan: Plan, seed: str) -> Evidence:
    """Work on a tree under faults, until nothing is live."""
    choices, begun = random.Random(seed), time.monotonic()
    moments = range(plan.batches * plan.items * 17 // 20)
    faults = [*["kill"] * (plan.kills - 1), *["cancel"] * plan.cancellations]
    choices.shuffle(faults)
    with connect(url) as manager, swept(manager), ExitStack() as stack:
        root = manager.create("root", max_attempts=100)
        workers = Workers(url, plan)
        stack.callback(workers.abandon)
        wait_until(lambda: manager.get(root.id).worker is not None, "nobody starts the root")
        workers.kill(workers.index(manager.get(root.id).worker))
        chosen, left_live = set(), 0
        for least, fault in zip(sorted(choices.sample(moments, len(faults))), faults, strict=True):
            wait_for_items(manager, least)
            time.sleep(choices.uniform(0, 0.1))
            if fault == "kill":
                workers.kill(choices.randrange(plan.workers))
            else:
                batch = choose_batch(manager, choices)
                is_complete = manager.count(parent_id=batch) > 0
                manager.cancel_tree(batch)
                chosen.add(batch)
                left_live += is_complete and manager.count(parent_id=batch, status=LIVE)
        manager.wait(root.id, timeout=timedelta(seconds=TIMEOUT))
        wait_until(lambda: manager.count(status=LIVE) == 0, "some executions do not finish", 0.1)
        workers.stop()
    seconds = time.monotonic() - begun
    return Evidence([*read_executions(url)], chosen, left_live, stalled_attempts(url), seconds)


def choose_batch(manager: ExecutionManager, choices: random.Random) -> str:
    """Choose a live batch: half of the time one with a running item, if there is one."""
    items = manager.list(type="item", status="running", limit=1000)
    if items and choices.random() < 0.5:
        return str(choices.choice(items).parent_id)
    return choices.choice(manager.list(type="batch", status=LIVE, limit=1000)).id


def wait_for_items(manager: ExecutionManager, least: int) -> None:
    """Wait until this many items have finished."""
    wait_until(
        lambda: manager.count(type="item", status=FINISHED) >= least,
        f"fewer than {least} items finish",
        0.05,
    )


@contextmanager
def swept(manager: ExecutionManager) -> Iterator[None]:
    """Sweep and retry twice a second, beside the workers, which do so as well."""
    stop = threading.Event()

    def sweep() -> None:
        while not stop.wait(0.5):
            manager.sweep(stalled_after=STALLED, retry=True)

    with ThreadPoolExecutor(1) as thread:
        sweeps = thread.submit(sweep)
        try:
            yield
        finally:
            stop.set()
        sweeps.result()


def stalled_attempts(url: str) -> Counter[str]:
    """Count the attempts that were ended because they sent no heartbeat, by type."""
    history = execution_history.c
    ended = select(executions.c.type, history.error).join(execution_history)
    with opened(url) as engine, engine.connect() as connection:
        rows = connection.execute(ended.where(history.error.is_not(None))).all()
    return Counter(type_ for type_, error in rows if error["code"] == "stalled")


def check(evidence: Evidence, plan: Plan) -> Iterator[str]:
    """Yield what is wrong."""
    for violation in checker.check_histories(evidence.executions):
        yield f"{violation.execution_id}: {violation.message}"
    if evidence.left_live:
        yield f"{evidence.left_live} executions were live below cancelled ones"
    children: dict[str | None, list[ObservedExecution]] = defaultdict(list)
    for each in evidence.executions:
        children[each.found["parent_id"]].append(each)
    if len(children[None]) != 1:
        yield f"{len(children[None])} executions have no parent"
    for each in evidence.executions:
        for problem in problems(each, children[each.id], evidence.chosen, plan):
            yield f"the {each.found['type']} {each.id} {problem}"


def problems(
    execution: ObservedExecution, below: list[ObservedExecution], chosen: set[str], plan: Plan
) -> Iterator[str]:
    """Yield what is wrong with one execution."""
    found, type_, status = execution.found, execution.found["type"], execution.found["status"]
    if (times := sum(row.to_status in FINISHED for row in execution.history)) != 1:
        yield f"is {status}, and has finished {times} times"
    size = {"root": plan.batches, "batch": plan.items, "item": 0}[type_]
    if len(below) != size and (below or status != "cancelled"):
        yield f"has {len(below)} children, not {size}"
    expected = expected_status(execution, below)
    may_be_cancelled = not chosen.isdisjoint((execution.id, found["parent_id"]))
    if status != expected and not (status == "cancelled" and may_be_cancelled):
        yield f"is {status}, not {expected}"
    if type_ == "item" and status == "completed" and found["result"] != found["payload"][0] ** 2:
        yield f"has the result {found['result']}"


def expected_status(execution: ObservedExecution, below: list[ObservedExecution]) -> str:
    """Return how an execution must end that is not cancelled."""
    if execution.found["type"] == "item":
        return "failed" if execution.found["payload"][1] == DEFECT else "completed"
    return "completed" if all(each.found["status"] == "completed" for each in below) else "failed"


def run(database: str, url: str, seed: int, plan: Plan) -> Column:
    """Run a tree, and return its figures."""
    evidence = run_tree(url, plan, f"{seed} {database}")
    failures = list(check(evidence, plan))
    types = Counter(each.found["type"] for each in evidence.executions)
    statuses = Counter((e.found["type"], e.found["status"]) for e in evidence.executions)
    if not statuses["batch", "cancelled"]:
        failures.append("nothing was cancelled")
    if not evidence.stalled:
        failures.append("no kill met an attempt")
    figures = {"executions": f"{types.total():,}"}
    for type_, name in (("batch", "batches"), ("item", "items")):
        for status in ("completed", "failed", "cancelled"):
            figures[f"  {name} {status}"] = f"{statuses[type_, status]:,}"
    figures |= {
        "worker processes": f"{plan.workers}",
        "workers killed (SIGKILL)": f"{plan.kills}",
        "attempts swept without a heartbeat, and retried": f"{evidence.stalled.total():,}",
        "  of the root and of batches": f"{evidence.stalled['root'] + evidence.stalled['batch']}",
        "calls of cancel_tree": f"{len(evidence.chosen)}",
        "transitions": f"{sum(len(each.history) for each in evidence.executions):,}",
        "seconds": f"{evidence.seconds:.0f}",
        "violations": f"{len(failures)}",
    }
    return Column(database, figures, failures)


PART: Final = Part(
    "trees",
    "A tree of executions, workers killed, parts cancelled",
    lambda name, url, seed, _folder, quick: run(name, url, seed, QUICK if quick else Plan()),
)

if __name__ == "__main__":
    sys.exit(main(PART, __doc__))
