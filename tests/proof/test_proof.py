"""`make proof` in its short form: some seconds of chaos, and the control that is found out.

Its checker is put to the test in test_proof_checker.py.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from proof.chaos import Plan, fresh
from proof.checker import KINDS, Violation
from proof.deterministic import ROOT, Counted
from proof.journal import DONE, REFUSED, UNKNOWN
from proof.report import BEGIN, END, Proof, failures, update
from proof.targets import Fault
from proof.trial import CONTROL, FAULTS, OPERATIONS, QUICK, Trial, explained, trial

from proof import targets

from ..support import postgres, processes

fresh.set_forkserver_preload(processes.PRELOAD)

MAKE: dict[str, Any] = {"postgresql": targets.postgresql, "sqlite": targets.sqlite}


@pytest.fixture(scope="module")
def own_server() -> Iterator[postgres.Server]:
    """One that may be crashed."""
    with postgres.server(own=True) as server:
        yield server


@pytest.fixture(params=MAKE)
def tried(
    request: pytest.FixtureRequest, own_server: postgres.Server, tmp_path: Path
) -> Callable[[Plan, int], Trial]:
    def make(plan: Plan, seed: int) -> Trial:
        with MAKE[request.param](own_server, tmp_path) as target:
            return trial(target, plan, seed, tmp_path / "journals")

    return make


def test_proof_under_faults_finds_no_violation(
    tried: Callable[[Plan, int], Trial], tell: Callable[[str], None]
) -> None:
    seed = random.randrange(10**6)
    found = tried(QUICK, seed)
    assert found.violations == [], f"seed {seed}"
    assert not found.missing
    assert found.outcomes[UNKNOWN] <= found.explained
    assert {*found.faults} == {*found.possible}
    assert min(found.outcomes[DONE], found.outcomes[REFUSED]) > 100
    tell(
        f"{found.database}: {found.outcomes.total()} operations, {found.faults.total()} faults,"
        f" {found.moves} moves of {found.executions} executions, no violation"
    )


def test_proof_control_read_then_write_is_detected(tried: Callable[[Plan, int], Trial]) -> None:
    kinds = tried(CONTROL, random.randrange(10**6)).kinds
    assert {"acknowledged transitions missing", "answers that are not linearizable"} <= {*kinds}


def test_proof_refuses_foreign_server(tmp_path: Path) -> None:
    """PostgreSQL alone: a server that somebody else has started is left alone."""
    with (
        pytest.raises(ValueError, match="server of our own"),
        targets.postgresql(
            postgres.Server("postgresql://localhost/mine", "TEST_POSTGRES_URL"), tmp_path
        ),
    ):
        pass


def test_proof_report_lists_failures() -> None:
    missing: Counter[Fault] = Counter({Fault.CRASH: 2})
    wrong = [Violation(kind, "id", f"it {n}") for n in range(12) for kind in KINDS[:1]]
    good = Trial("SQLite", (Fault.KILL,), Counter(), Counter(), Counter(), 1, 1, [])
    bad = replace(good, missing=missing, violations=wrong, outcomes=Counter({UNKNOWN: 1}))
    tests = [Counted("tests/a.py", 3), Counted("tests/b.py", 0, "there is no such file")]
    told = list(failures(Proof(1, "a machine", [good, bad], [good, bad], tests)))
    assert [line.split(": ", 1)[1] for line in told] == [
        *(f"{KINDS[0]}: it {n}" for n in range(10)),
        "and 2 violations more",
        f"2 fewer than were asked for: {Fault.CRASH}",
        "1 unknown, where faults explain 0",
        "the store that is wrong was not found out",
        "there is no such file",
    ]
    assert list(failures(Proof(1, "a machine", [good], [bad], tests[:1]))) == []


def test_proof_report_lists_unexplained_unknown_outcomes() -> None:
    unknown = Counter({DONE: 9, UNKNOWN: 5})
    trial = Trial("SQLite", (Fault.KILL,), Counter(), Counter(), unknown, 1, 1, [], explained=5)
    more = replace(trial, outcomes=unknown + Counter({UNKNOWN: 1}))
    told = failures(Proof(1, "a machine", [trial, more], [], []))
    assert list(told) == ["SQLite: 6 unknown, where faults explain 5"]


@pytest.mark.parametrize("plan", [Plan(30, OPERATIONS, FAULTS), QUICK])
def test_proof_rejects_store_that_always_reports_unknown(plan: Plan) -> None:
    """Though the server is down half a second at each crash."""
    faults = Counter(plan.faults)
    crashes = faults[Fault.STOP] + faults[Fault.CRASH]
    assert faults.total() < explained(plan, faults, crashes / 2) < plan.operations


def test_proof_figures_are_written_to_page(tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    page.write_text((ROOT / "docs" / "reliability.md").read_text())
    trial = Trial("SQLite", (Fault.KILL,), Counter(), Counter(), Counter(), 1, 7654, [])
    for _ in range(2):
        update(page, Proof(1, "a machine", [trial], [trial], [Counted("tests/a.py", 3)]))
    text = page.read_text()
    assert text.count("7,654") == 2
    assert max(map(len, text.split(BEGIN)[1].split(END)[0].splitlines())) < 100


def test_proof_quick_plan_has_every_fault() -> None:
    assert {*QUICK.faults} == {*Fault}
    assert min(QUICK.faults.values()) > 0
