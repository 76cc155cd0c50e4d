"""What `make test` runs of an exhaustive matrix; `make test-all` runs all of it.

A test marked `@pytest.mark.matrix` is a matrix: its parameters are combined. `make test` runs a
selection of its cases in which every value of every parameter occurs, and every pair of the values
of `ACROSS`. A test marked `@pytest.mark.exhaustive` runs in `make test-all` alone; another test has
to touch the same behaviour in `make test`. `sampled` does the same for a list of cases in a test.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import pytest

T = TypeVar("T")

WHOLE: Final = os.environ.get("EXECUTION_CORE_TESTS") == "whole"
"""Whether everything runs: set by `make test-all`."""
ACROSS: Final = ("database", "any_manager", "mode", "kind")
"""Parameters that are combined with each other also in a selection."""

Facts = frozenset[Any]


def sampled(cases: Sequence[T], every: int) -> Sequence[T]:
    """Return all cases, or every n-th of them in `make test`."""
    return cases if WHOLE else cases[::every]


def select(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return the items that run and those that are left out."""
    if WHOLE:
        return items, []
    matrices: dict[str, list[pytest.Item]] = defaultdict(list)
    kept = set()
    for item in items:
        if item.get_closest_marker("exhaustive"):
            continue
        if item.get_closest_marker("matrix"):
            matrices[item.nodeid.partition("[")[0]].append(item)
        else:
            kept.add(item.nodeid)
    for cases in matrices.values():
        kept |= {item.nodeid for item in _cover(cases)}
    run = [item for item in items if item.nodeid in kept]
    return run, [item for item in items if item.nodeid not in kept]


def _cover(cases: list[pytest.Item]) -> Iterable[pytest.Item]:
    """Choose cases until every fact of any case is a fact of a chosen one."""
    facts = {case.nodeid: _facts(case) for case in cases}
    missing = frozenset[Any]().union(*facts.values())
    while missing:
        best = max(cases, key=lambda case: len(facts[case.nodeid] & missing))
        missing -= facts[best.nodeid]
        yield best


def _facts(case: pytest.Item) -> Facts:
    # Not `indices`: beside a parametrized fixture they count the cases rather than the values.
    parameters = getattr(case, "callspec").params  # noqa: B009 - a Function has it
    values = sorted((name, repr(value)) for name, value in parameters.items())
    across = [value for value in values if value[0] in ACROSS]
    pairs = {(one, other) for one in across for other in across if one < other}
    return frozenset({*values, *pairs})
