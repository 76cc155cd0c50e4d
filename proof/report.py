"""Format the figures for the terminal and for the documentation."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .checker import KINDS
from .deterministic import FileResult
from .journal import OUTCOMES
from .targets import Fault
from .trial import Trial

BEGIN: Final = "<!-- figures: written by `make proof ARGS=--write` -->"
END: Final = "<!-- end of figures -->"
LABEL, FIGURE = 54, 11
MAX_LISTED: Final = 10
"""How many violations of each trial are listed."""


@dataclass(frozen=True)
class Proof:
    """The results of all trials and tests."""

    seed: int
    machine: str
    trials: Sequence[Trial]
    controls: Sequence[Trial]
    tests: Sequence[FileResult]


def failures(proof: Proof) -> Iterator[str]:
    """Yield the reasons why the proof has failed."""
    for trial in proof.trials:
        for violation in trial.violations[:MAX_LISTED]:
            yield f"{trial.database}: {violation.kind}: {violation.message}"
        if more := trial.violations[MAX_LISTED:]:
            yield f"{trial.database}: and {len(more)} more violations"
        for fault, n in trial.missing.items():
            yield f"{trial.database}: {n} fewer than requested: {fault}"
        if trial.unanswered > trial.explained:
            explained = f"faults explain {trial.explained}"
            yield f"{trial.database}: {trial.unanswered} unanswered calls, but {explained}"
    for control in proof.controls:
        if not control.violations:
            yield f"{control.database}: the broken store was not detected"
    for each in proof.tests:
        if each.problem:
            yield f"{each.file}: {each.problem}"


def text(proof: Proof) -> str:
    """Return all figures."""
    trials, controls = list(proof.trials), list(proof.controls)
    parts = [
        f"Seed {proof.seed}. {proof.machine}",
        _table(
            ["Operations under faults", *(trial.database for trial in trials)],
            [*_operations(trials), *_faults(trials), *_violations(trials)],
        ),
        _table(
            ["Control: a store that reads, then writes", *(each.database for each in controls)],
            [*_operations(controls), *_violations(controls)],
        ),
    ]
    if proof.tests:
        rows = [[each.file, f"{each.passed:,}"] for each in proof.tests]
        parts.append(_table(["Deterministic tests", "passed"], rows))
    return "\n\n".join(parts)


def _operations(trials: list[Trial]) -> Iterator[list[str]]:
    yield _row("operations", (trial.outcomes.total() for trial in trials))
    for outcome in OUTCOMES:
        yield _row(f"  {outcome}", (trial.outcomes[outcome] for trial in trials))
    yield _row("executions", (trial.executions for trial in trials))
    yield _row("history rows", (trial.history_rows for trial in trials))


def _faults(trials: list[Trial]) -> Iterator[list[str]]:
    yield _row("faults", (trial.faults.total() for trial in trials))
    for fault in Fault:
        counts = (trial.faults[fault] if fault in trial.possible else None for trial in trials)
        yield _row(f"  {fault}", counts)
    yield _row("  unanswered calls that these explain, at most", (t.explained for t in trials))


def _violations(trials: list[Trial]) -> Iterator[list[str]]:
    yield _row("violations", (len(trial.violations) for trial in trials))
    for kind in KINDS:
        yield _row(f"  {kind}", (trial.kinds[kind] for trial in trials))


def _row(label: str, figures: Iterable[int | None]) -> list[str]:
    return [label, *("-" if figure is None else f"{figure:,}" for figure in figures)]


def _table(heads: list[str], rows: list[list[str]]) -> str:
    line = "-" * (LABEL + FIGURE * (len(heads) - 1))
    lines = [_aligned(each) for each in rows]
    return "\n".join([_aligned(heads), line, *lines])


def _aligned(cells: list[str]) -> str:
    label, *figures = cells
    return f"{label:<{LABEL}}" + "".join(f"{figure:>{FIGURE}}" for figure in figures)


def update(page: Path, proof: Proof) -> None:
    """Replace the figures on a page of the documentation."""
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    block = f"{BEGIN}\n\n```text\n{text(proof)}\n```\n\n{END}"
    page.write_text(between.sub(lambda _: block, page.read_text()))
