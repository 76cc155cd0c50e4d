"""`make bench`: measure everything in one run, print it and write the figures of the docs."""

import argparse
import json
import os
import platform
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import footprint, lifecycles, report, table_in_use
from .databases import Databases, databases

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Measure everything, print the tables and write the figures."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="check that everything runs, in two minutes; the figures mean nothing",
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FOLDER",
        help="folder for performance.json, performance.svg and the tables of performance.md"
        " (default: docs/; with --quick nothing is written)",
    )
    arguments = parser.parse_args()
    console = Console(width=max(Console().width, 130))  # the tables are wide
    figures: dict[str, Any] = {}
    with databases() as available:
        figures["machine"] = machine(available)
        console.print(figures["machine"])
        for name, value in measure(available, quick=arguments.quick):
            console.print(f"  measured: {name}", style="dim")
            figures[name] = value
    for title, headings, rows in report.tables(figures):
        show(console, title, headings, rows)
    if docs := arguments.docs or (None if arguments.quick else DOCS):
        write(docs, figures)


def measure(available: Databases, *, quick: bool) -> Iterator[tuple[str, Any]]:
    """Yield the name and the figures of each measurement; they run one after another."""
    count, rounds = (40, 2) if quick else (200, 25)
    yield "lifecycles", list(lifecycles.measure(available, count=count, rounds=rounds))
    yield (
        "many_finished",
        list(
            table_in_use.many_finished(
                available, rows=10_000 if quick else 1_000_000, count=count, rounds=rounds
            )
        ),
    )
    fillfactors = (70,) if quick else (100, 90, 80, 70, 50)
    yield "hot_updates", list(table_in_use.hot_updates(available, fillfactors=fillfactors))
    yield "vacuum", table_in_use.vacuum(available, updates=1000 if quick else 20_000)
    yield "payloads", list(table_in_use.payloads(available, sizes=(100, 1000, 10_000, 100_000)))
    yield "imports", list(footprint.imports(rounds=2 if quick else 15))
    yield "memory", footprint.memory(available, minutes=0.1 if quick else 10)


def machine(available: Databases) -> str:
    """Describe the date, the machine and the versions."""
    cpus = Path("/proc/cpuinfo")
    model = platform.processor()
    if cpus.exists():
        names = [line for line in cpus.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return (
        f"{date.today()}: {model}, {os.cpu_count()} cores, {platform.system()}"
        f" {platform.release()}, Python {platform.python_version()}, PostgreSQL"
        f" {available.server.version.split()[0]} with fsync"
    )


def show(console: Console, title: str, headings: list[str], rows: list[list[str]]) -> None:
    """Print one table."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for n, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if n else "left")
    for row in rows:
        shown.add_row(*(cell.replace("**", "").replace("`", "") for cell in row))
    console.print(shown)


def write(folder: Path, figures: dict[str, Any]) -> None:
    """Write the figures, the plot and the tables of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "performance.json").write_text(json.dumps(figures, indent=1) + "\n")
    report.plot(folder / "performance.svg", figures)
    page = folder / "performance.md"
    if page.exists():
        report.update(page, figures)


if __name__ == "__main__":
    main()
