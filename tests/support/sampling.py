"""Select the cases that `make test` runs; `make test-all` runs all of them.

A test with several parameters has a case for each combination. `make test` runs a selection in
which every value of every parameter occurs: each test runs on both databases and in both APIs, but
not in each of the four combinations. The name of the test decides which, so that each gets its
share.

`@pytest.mark.slow` marks a test of which `make test` runs one case: on one database, in one API.

`@pytest.mark.exhaustive` marks a test that only `make test-all` runs. Another test must touch the
same behaviour in `make test`.

`sampled` selects from a list of cases inside a test, `in_whole` chooses between two values.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar
from zlib import crc32

import pytest

T = TypeVar("T")

WHOLE: Final = os.environ.get("EXECUTION_CORE_TESTS") == "whole"
"""Whether everything runs: set by `make test-all`."""
ACROSS: Final = ("database", "any_manager", "clocked_manager", "mode", "kind")
"""Parameters whose combinations a selection uses equally often."""

Facts = frozenset[Any]


def sampled(cases: Sequence[T], every: int) -> Sequence[T]:
    """Return all cases, or every n-th of them in `make test`."""
    return cases if WHOLE else cases[::every]


def in_whole(whole: T, selection: T) -> T:
    """Return the first value in `make test-all`, the second in `make test`."""
    return whole if WHOLE else selection


def is_possible(item: pytest.Item) -> bool:
    """Return whether the parameters of a case fit: asyncpg is for PostgreSQL and asyncio alone."""
    parameters = getattr(_callspec(item), "params", {}).values()
    given = {value for value in parameters if isinstance(value, str)}
    return not (given & {"sqlite", "sync"} and any("asyncpg" in value for value in given))


def select(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return the items that run and those that are left out."""
    if WHOLE:
        return items, []
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("exhaustive"):
            tests[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for test, found in tests.items():
        first = crc32(test.encode()) % len(found)
        cases = found[first:] + found[:first]
        chosen = cases[:1] if cases[0].get_closest_marker("slow") else _cover(cases)
        kept |= {item.nodeid for item in chosen}
    run = [item for item in items if item.nodeid in kept]
    return run, [item for item in items if item.nodeid not in kept]


def _cover(cases: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Choose cases until every fact of any case is a fact of a chosen one."""
    facts = {case.nodeid: _facts(case) for case in cases}
    combinations = {case.nodeid: _combination(case) for case in cases}
    missing = frozenset[Any]().union(*facts.values())
    if not missing:
        yield from cases
    used: Counter[Facts] = Counter()
    while missing:
        best = max(
            cases,
            key=lambda case: (
                len(facts[case.nodeid] & missing),
                -used[combinations[case.nodeid]],
            ),
        )
        missing -= facts[best.nodeid]
        used[combinations[best.nodeid]] += 1
        yield best


def _facts(case: pytest.Item) -> Facts:
    # An id for each call of `parametrize`; `callspec.indices` counts the cases of all of them.
    return frozenset(enumerate(getattr(_callspec(case), "_idlist", ())))


def _combination(case: pytest.Item) -> Facts:
    parameters: dict[str, Any] = getattr(_callspec(case), "params", {})
    return frozenset((name, str(parameters[name])) for name in ACROSS if name in parameters)


def _callspec(case: pytest.Item) -> object:
    return getattr(case, "callspec", None)
