"""`make proof` in its short form: some seconds of chaos, and the control that is found out.

Its checker is put to the test in test_proof_checker.py.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proof import targets
from proof.chaos import Plan, fresh
from proof.journal import DONE, REFUSED
from proof.targets import Fault
from proof.trial import CONTROL, QUICK, Trial, trial

from . import postgres

fresh.set_forkserver_preload(["tests.test_races", "proof.chaos"])

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


def test_whoever_races_and_whatever_breaks(
    tried: Callable[[Plan, int], Trial], tell: Callable[[str], None]
) -> None:
    seed = random.randrange(10**6)
    found = tried(QUICK, seed)
    assert found.violations == [], f"seed {seed}"
    assert not found.missing
    assert {*found.faults} == {*found.possible}
    assert min(found.outcomes[DONE], found.outcomes[REFUSED]) > 100
    tell(
        f"{found.database}: {found.outcomes.total()} operations, {found.faults.total()} faults,"
        f" {found.moves} moves of {found.executions} executions, no violation"
    )


def test_reading_and_then_writing_is_found_out(tried: Callable[[Plan, int], Trial]) -> None:
    kinds = tried(CONTROL, random.randrange(10**6)).kinds
    assert {"answered moves that are lost", "answers in no possible order"} <= {*kinds}


def test_only_what_may_be_crashed_is_crashed(tmp_path: Path) -> None:
    """PostgreSQL alone: a server that somebody else has started is left alone."""
    with (
        pytest.raises(ValueError, match="server of our own"),
        targets.postgresql(
            postgres.Server("postgresql://localhost/mine", "TEST_POSTGRES_URL"), tmp_path
        ),
    ):
        pass


def test_a_fault_of_each_kind() -> None:
    assert {*QUICK.faults} == {*Fault}
    assert min(QUICK.faults.values()) > 0
