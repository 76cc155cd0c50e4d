"""`make proof` in its short form: some seconds of faults, and the control that is detected.

test_proof_checker.py tests the checker.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from proof.chaos import Plan, fork_server
from proof.checker import KINDS, Violation
from proof.deterministic import ROOT, FileResult
from proof.journal import DONE, NOT_DONE, REFUSED, UNKNOWN
from proof.report import BEGIN, END, Proof, failures, update
from proof.targets import Fault
from proof.trial import CONTROL, FAULTS, OPERATIONS, QUICK, Trial, explained, trial

from proof import targets

from ..support import postgres, processes
from ..support.pgbouncer import BINARY, MISSING

fork_server.set_forkserver_preload(processes.PRELOAD)

TARGETS: dict[str, Any] = {
    "postgresql": targets.postgresql,
    "sqlite": targets.sqlite,
    "pgbouncer": targets.pgbouncer,
    "failover": targets.failover,
}
NEEDS_PGBOUNCER = pytest.mark.skipif(BINARY is None, reason=MISSING)


@pytest.fixture(scope="module")
def own_server() -> Iterator[postgres.Server]:
    """A server that the tests may crash."""
    with postgres.server(own=True) as server:
        yield server


@pytest.fixture
def run_trial(
    request: pytest.FixtureRequest, own_server: postgres.Server, tmp_path: Path
) -> Callable[[Plan, int], Trial]:
    def make(plan: Plan, seed: int) -> Trial:
        with TARGETS[request.param](own_server, tmp_path) as target:
            return trial(target, plan, seed, tmp_path / "journals")

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "run_trial",
    ["postgresql", "sqlite", pytest.param("pgbouncer", marks=NEEDS_PGBOUNCER), "failover"],
    indirect=True,
)
def test_proof_under_faults_finds_no_violation(
    run_trial: Callable[[Plan, int], Trial], tell: Callable[[str], None]
) -> None:
    seed = random.randrange(10**6)
    found = run_trial(QUICK, seed)
    assert found.violations == [], f"seed {seed}"
    assert not found.missing
    assert found.unanswered <= found.explained
    assert {*found.faults} == {*found.possible}
    assert min(found.outcomes[DONE], found.outcomes[REFUSED]) > 100
    tell(
        f"{found.database}: {found.outcomes.total()} operations, {found.faults.total()} faults,"
        f" {found.history_rows} transitions of {found.executions} executions, no violation"
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("run_trial", ["postgresql", "sqlite"], indirect=True)
def test_proof_control_read_then_write_is_detected(run_trial: Callable[[Plan, int], Trial]) -> None:
    kinds = run_trial(CONTROL, random.randrange(10**6)).kinds
    assert {"acknowledged transitions missing", "answers that are not linearizable"} <= {*kinds}


def test_proof_refuses_foreign_server(tmp_path: Path) -> None:
    """A PostgreSQL server that the proof did not start is never crashed."""
    with (
        pytest.raises(ValueError, match="only a server that this process started"),
        targets.postgresql(
            postgres.Server("postgresql://localhost/mine", "TEST_POSTGRES_URL"), tmp_path
        ),
    ):
        pass


def test_proof_report_lists_failures() -> None:
    missing: Counter[Fault] = Counter({Fault.CRASH: 2})
    wrong = [Violation(kind, "id", f"violation {n}") for n in range(12) for kind in KINDS[:1]]
    good = Trial("SQLite", (Fault.KILL,), Counter(), Counter(), Counter(), 1, 1, [])
    bad = replace(good, missing=missing, violations=wrong, outcomes=Counter({UNKNOWN: 1}))
    tests = [FileResult("tests/a.py", 3), FileResult("tests/b.py", 0, "there is no such file")]
    lines = list(failures(Proof(1, "a machine", [good, bad], [good, bad], tests)))
    assert [line.split(": ", 1)[1] for line in lines] == [
        *(f"{KINDS[0]}: violation {n}" for n in range(10)),
        "and 2 more violations",
        f"2 fewer than requested: {Fault.CRASH}",
        "1 unanswered calls, but faults explain 0",
        "the broken store was not detected",
        "there is no such file",
    ]
    assert list(failures(Proof(1, "a machine", [good], [bad], tests[:1]))) == []


def test_proof_report_lists_unexplained_unanswered_calls() -> None:
    unknown = Counter({DONE: 9, UNKNOWN: 5})
    trial = Trial("SQLite", (Fault.KILL,), Counter(), Counter(), unknown, 1, 1, [], explained=5)
    more = replace(trial, outcomes=unknown + Counter({NOT_DONE: 1}))
    lines = failures(Proof(1, "a machine", [trial, more], [], []))
    assert list(lines) == ["SQLite: 6 unanswered calls, but faults explain 5"]


@pytest.mark.parametrize("plan", [Plan(30, OPERATIONS, FAULTS), QUICK])
def test_proof_rejects_store_that_always_reports_unknown(plan: Plan) -> None:
    """Even though each crash keeps the server down for half a second."""
    faults = Counter(plan.faults)
    crashes = faults[Fault.STOP] + faults[Fault.CRASH]
    assert faults.total() < explained(plan, faults, crashes / 2) < plan.operations


def test_proof_figures_are_written_to_page(tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    page.write_text((ROOT / "docs" / "reliability.md").read_text())
    trial = Trial("SQLite", (Fault.KILL,), Counter(), Counter(), Counter(), 1, 7654, [])
    for _ in range(2):
        update(page, Proof(1, "a machine", [trial], [trial], [FileResult("tests/a.py", 3)]))
    text = page.read_text()
    assert text.count("7,654") == 2
    assert max(map(len, text.split(BEGIN)[1].split(END)[0].splitlines())) < 100


def test_proof_quick_plan_has_every_fault() -> None:
    assert {*QUICK.faults} == {*Fault}
    assert min(QUICK.faults.values()) > 0
