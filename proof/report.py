"""Format the figures for the terminal and for the documentation."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
class Column:
    """The figures of a part of the proof on one database, and what is wrong."""

    database: str
    figures: Mapping[str, str]
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PartResult:
    """The results of a part that has a section of its own in the documentation."""

    name: str
    title: str
    heading: str
    columns: Sequence[Column]

    def failures(self) -> Iterator[str]:
        """Yield the reasons why it has failed."""
        for column in self.columns:
            for each in column.failures[:MAX_LISTED]:
                yield f"{column.database}: {self.name}: {each}"
            if more := column.failures[MAX_LISTED:]:
                yield f"{column.database}: {self.name}: and {len(more)} more"

    def text(self) -> str:
        """Return its figures."""
        heads = [self.title, *(column.database for column in self.columns)]
        rows = [
            [name, *(column.figures[name] for column in self.columns)]
            for name in self.columns[0].figures
        ]
        return f"{self.heading}\n\n{_table(heads, rows)}"


@dataclass(frozen=True)
class Proof:
    """The results of all trials, parts and tests."""

    seed: int
    machine: str
    trials: Sequence[Trial]
    controls: Sequence[Trial]
    tests: Sequence[FileResult]
    parts: Sequence[PartResult] = ()


def failures(proof: Proof) -> Iterator[str]:
    """Yield the reasons why the proof has failed."""
    for trial in proof.trials:
        yield from _failures_of(trial)
    for control in proof.controls:
        if not control.violations:
            yield f"{control.database}: the broken store was not detected"
    for part in proof.parts:
        yield from part.failures()
    for each in proof.tests:
        if each.problem:
            yield f"{each.file}: {each.problem}"


def _failures_of(trial: Trial) -> Iterator[str]:
    for violation in trial.violations[:MAX_LISTED]:
        yield f"{trial.database}: {violation.kind}: {violation.message}"
    if more := trial.violations[MAX_LISTED:]:
        yield f"{trial.database}: and {len(more)} more violations"
    for fault, n in trial.missing.items():
        yield f"{trial.database}: {n} fewer than requested: {fault}"
    if trial.unanswered > trial.explained:
        explained = f"faults explain {trial.explained}"
        yield f"{trial.database}: {trial.unanswered} unanswered calls, but {explained}"


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
    _write(page, BEGIN, text(proof))
    for part in proof.parts:
        update_part(page, part)


def update_part(page: Path, part: PartResult) -> None:
    """Replace the figures of one part on a page of the documentation."""
    _write(page, BEGIN.replace("figures", f"figures of {part.name}"), part.text())


def _write(page: Path, begin: str, figures: str) -> None:
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(END)}", re.DOTALL)
    block = f"{begin}\n\n```text\n{figures}\n```\n\n{END}"
    content, replaced = between.subn(lambda _: block, page.read_text())
    if replaced != 1:
        raise ValueError(f"{page} has {replaced} blocks {begin}")
    page.write_text(content)
