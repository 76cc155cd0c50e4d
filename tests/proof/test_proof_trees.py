"""`python -m proof.trees` in its short form, and its check, which must report falsifications."""

import random
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from proof.chaos import fork_server, read_executions
from proof.observed import HistoryRow, ObservedExecution
from proof.tree_workers import DEFECT, Plan
from proof.trees import QUICK, Evidence, check, run

from execution_core import connect

from ..conftest import Database
from ..support import processes

fork_server.set_forkserver_preload(processes.PRELOAD)


@pytest.mark.exhaustive
def test_proof_trees_killed_workers_finish_each_once(
    database: Database, tell: Callable[[str], None]
) -> None:
    seed = random.randrange(10**6)
    column = run(database.name, database.url, seed, QUICK)
    assert column.failures == [], f"seed {seed}"
    tell(
        f"{database.name}: {column.figures['executions']} executions of a tree, {QUICK.kills}"
        f" kills, {QUICK.cancellations} cancelled batches, no violation"
    )


@pytest.fixture
def evidence(database: Database) -> Evidence:
    """A tree with one completed batch, one that failed, and one that was cancelled."""
    with connect(database.url) as manager:
        root = manager.start(manager.create("root").id)
        for n in range(3):
            options = {"type": "batch", "payload": n, "parent_id": root.id}
            (batch,) = manager.create_many([options])
            manager.start(batch.id)
            for k in range(2):
                fault = DEFECT if (n, k) == (1, 1) else None
                item = manager.create("item", [k, fault], parent_id=batch.id)
                if n < 2:
                    manager.start(item.id)
                    if fault:
                        manager.fail(item.id, fault)
                    else:
                        manager.complete(item.id, k**2)
            manager.finish_with_children(batch.id)
        manager.cancel_tree(batch.id)
        manager.finish_with_children(root.id)
    return Evidence([*read_executions(database.url)], {batch.id}, 0, Counter(), 0)


def one(evidence: Evidence, type_: str, status: str) -> ObservedExecution:
    return next(
        each
        for each in evidence.executions
        if (each.found["type"], each.found["status"]) == (type_, status)
    )


def change(evidence: Evidence, type_: str, status: str, new: str) -> None:
    """Give an execution another status, with a legal history."""
    each = one(evidence, type_, status)
    each.found["status"] = new
    each.history[-1] = each.history[-1]._replace(to_status=new)


def finish_again(evidence: Evidence) -> None:
    each = one(evidence, "batch", "failed")
    for source, target, attempt in (
        ("failed", "retrying", 1),
        ("retrying", "running", 2),
        ("running", "failed", 2),
    ):
        row = HistoryRow(len(each.history) + 1, source, target, attempt, None)
        each.history.append(row)
    each.found["attempts"] = 2


FALSIFICATIONS: dict[str, tuple[Callable[[Evidence], Any], str]] = {
    "item lost": (lambda e: e.executions.remove(one(e, "item", "completed")), "has 1 children"),
    "batch lost": (lambda e: e.executions.remove(one(e, "batch", "completed")), "has 2 children"),
    "live below cancelled": (lambda e: change(e, "item", "cancelled", "running"), "finished 0"),
    "ended twice": (finish_again, "has finished 2 times"),
    "completed despite failure": (
        lambda e: change(e, "batch", "failed", "completed"),
        "not failed",
    ),
    "failed without failure": (
        lambda e: change(e, "batch", "completed", "failed"),
        "not completed",
    ),
    "root completed": (lambda e: change(e, "root", "failed", "completed"), "not failed"),
    "cancelled elsewhere": (
        lambda e: change(e, "item", "completed", "cancelled"),
        "is cancelled, not completed",
    ),
    "wrong result": (
        lambda e: one(e, "item", "completed").found.update(result=-1),
        "has the result -1",
    ),
    "illegal history": (lambda e: one(e, "item", "failed").history.pop(1), "after"),
}


def test_proof_trees_check_reports_each_falsification(evidence: Evidence) -> None:
    plan = Plan(batches=3, items=2)
    assert list(check(evidence, plan)) == []
    for name, (falsify, expected) in FALSIFICATIONS.items():
        false = deepcopy(evidence)
        falsify(false)
        assert any(expected in problem for problem in check(false, plan)), name
