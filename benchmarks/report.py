"""Format the figures as Markdown tables and as a plot."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Figures = dict[str, Any]

BEGIN = "<!-- figures: written by `make bench` -->"
END = "<!-- end of figures -->"


class Target(NamedTuple):
    """A figure, its target and its measured value."""

    figure: str
    wanted: str
    measured: float
    reached: bool


def targets(figures: Figures) -> Iterator[Target]:
    """Yield the measured value of each target."""

    def at_least(figure: str, wanted: float, measured: float) -> Target:
        return Target(figure, f"≥ {wanted:.2f}", measured, measured >= wanted)

    def at_most(figure: str, wanted: float, measured: float) -> Target:
        return Target(figure, f"≤ {wanted:.2f}", measured, measured <= wanted)

    ratios = {
        (group["title"], row["name"]): row["ratio"]
        for group in figures["lifecycles"]
        for row in group["rows"]
    }
    for title, name, wanted in (
        ("PostgreSQL, one caller", "execution-core, connect", 0.90),
        ("PostgreSQL, asyncio, 8 tasks", "execution-core, connect_async", 0.80),
        ("SQLite, WAL, synchronous = NORMAL", "execution-core", 0.60),
        ("SQLite, WAL, synchronous = FULL", "execution-core", 0.60),
        ("PostgreSQL, asyncio, one task", "execution-core, connect_async", 0.85),
    ):
        yield at_least(f"{title}: against plain SQL", wanted, ratios[title, name])
    caller = "PostgreSQL, one caller"
    library = ratios[caller, "execution-core, connect"]
    for peer in ("DBOS", "Procrastinate"):
        yield at_least(f"{caller}: against {peer}", 2.0, round(library / ratios[caller, peer], 3))
    for each in figures["many_finished"]:
        yield at_least(
            f"{each['database']}: {each['rows']:,} finished rows against none", 0.90, each["ratio"]
        )
    hot = next(each for each in figures["hot_updates"] if each["fillfactor"] == 70)
    yield at_least("HOT share of progress and checkpoint updates", 0.95, hot["hot_share"])
    logged = {
        each["payload_bytes"]: each["log_bytes_per_move"]
        for each in figures["payloads"]
        if each["database"] == "postgresql"
    }
    yield at_most(
        "WAL per write, payload of 100 KB against 100 B",
        1.20,
        round(logged[100_000] / logged[100], 3),
    )
    imported = {each["statement"]: each["ratio"] for each in figures["imports"]}
    yield at_most("import execution_core", 1.30, imported["import execution_core"])
    for kind in ("postgresql", "sqlite"):
        memory = figures["memory"][kind]
        yield at_most(f"{kind}: memory, list(limit=1000)", 1.02, memory["list_growth"])
        minutes = figures["memory"]["minutes"]
        yield at_most(f"{kind}: memory, {minutes:g} minutes of load", 1.02, memory["load_growth"])


def markdown(figures: Figures) -> str:
    """Return all figures as Markdown tables."""
    return (
        "\n\n".join(table(title, headings, rows) for title, headings, rows in tables(figures))
        + "\n"
    )


def table(title: str, headings: list[str], rows: list[list[str]]) -> str:
    """Return one table: the first column aligned left, the others right."""
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *rows]
    return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(figures: Figures) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield the title, the headings and the rows of each table."""
    yield (
        f"Targets. {figures['machine']}",
        ["figure", "target", "measured", ""],
        [
            [t.figure, t.wanted, f"{t.measured:.2f}", "reached" if t.reached else "**missed**"]
            for t in targets(figures)
        ],
    )
    for group in figures["lifecycles"]:
        server = "commits" in group["rows"][0]
        yield (
            f"{group['title']}: lifecycles, {group['rounds']} rounds of {group['count']} each",
            ["", "per second", "relative to plain SQL", "middle half of the rounds"]
            + (["commits each", "WAL each"] if server else []),
            [
                [
                    row["name"] if is_ours(row) else f"{row['name']} ({row['version']})",
                    f"{row['per_second']:,.0f}",
                    f"{row['ratio']:.2f}",
                    "{:.2f} to {:.2f}".format(*middle_half(row["ratios"])),
                ]
                + ([f"{row['commits']:.1f}", f"{row['wal_bytes']:,} B"] if server else [])
                for row in group["rows"]
            ],
        )
    for each in figures["many_finished"]:
        yield (
            f"{each['database']} with {each['rows']:,} finished rows, beside an empty table",
            ["", "empty", "full"],
            [
                ["speed of transitions", "1.00", f"{each['ratio']:.2f}"],
                ["speed of transitions, the control", "1.00", f"{each['control']:.2f}"],
                *(
                    [f"ms for {name}", f"{empty:.2f}", f"{full:.2f}"]
                    for name, (empty, full) in each["calls_ms"].items()
                ),
            ],
        )
    yield (
        "Progress and checkpoints of 512 executions with 1 KB of payload, 8 tasks",
        ["fillfactor", "HOT share", "updates/s", "MB afterwards"],
        [
            [
                str(each["fillfactor"]),
                f"{each['hot_share']:.3f}",
                f"{each['per_second']:,}",
                f"{each['megabytes']:.1f}",
            ]
            for each in figures["hot_updates"]
        ],
    )
    vacuum = figures["vacuum"]
    yield (
        f"{vacuum['updates']:,} progress updates of 100 executions, autovacuum off",
        ["", "updates/s", "MB afterwards"],
        [
            [name, f"{each['per_second']:,}", f"{each['megabytes']:.1f}"]
            for name, each in vacuum.items()
            if name != "updates"
        ],
    )
    yield (
        "Log written by each start, progress, checkpoint or complete, by the size of the payload",
        ["", "bytes of payload", "bytes of WAL", "µs"],
        [
            [
                each["database"],
                f"{each['payload_bytes']:,}",
                f"{each['log_bytes_per_move']:,}",
                f"{each['microseconds_per_move']:,}",
            ]
            for each in figures["payloads"]
        ],
    )
    yield (
        "Imports in a fresh interpreter",
        ["", "ms", "ratio"],
        [
            [f"`{each['statement']}`", f"{each['milliseconds']:.0f}", f"{each['ratio']:.2f}"]
            for each in figures["imports"]
        ],
    )
    yield (
        "Resident memory, the last quarter against the second",
        ["", "calls", "MB at last", "`list(limit=1000)`", f"{figures['memory']['minutes']:g} min"],
        [
            [
                kind,
                f"{each['calls']:,}",
                f"{each['load_kib'][-1] / 1024:.0f}",
                f"{each['list_growth']:.3f}",
                f"{each['load_growth']:.3f}",
            ]
            for kind in ("postgresql", "sqlite")
            for each in [figures["memory"][kind]]
        ],
    )


def is_ours(row: dict[str, Any]) -> bool:
    """Return whether a row is this library, whose version needs no mention."""
    return str(row["name"]).startswith("execution-core")


def middle_half(ratios: list[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    return ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]


def update(page: Path, figures: Figures) -> None:
    """Replace the tables on a page of the documentation."""
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    block = f"{BEGIN}\n\n{markdown(figures)}\n{END}"
    page.write_text(between.sub(lambda _: block, page.read_text()))


def plot(path: Path, figures: Figures) -> None:
    """Draw the lifecycles of each group, relative to plain SQL."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "execution-core", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    groups = figures["lifecycles"]
    drawing, axes = plt.subplots(
        len(groups),
        figsize=(9, 0.5 * len(groups) + 0.32 * sum(len(group["rows"]) for group in groups)),
        height_ratios=[len(group["rows"]) + 1 for group in groups],
        layout="constrained",
    )
    for axis, group in zip(axes, groups, strict=True):
        rows = group["rows"][::-1]
        bars = axis.barh(
            [row["name"] for row in rows],
            [row["ratio"] for row in rows],
            color=[color(row) for row in rows],
        )
        axis.bar_label(
            bars,
            [
                f"{row['ratio']:.2f}  ({row['per_second']:,.0f}/s"
                + (f", {row['commits']:.1f} commits)" if row.get("commits", 3) != 3 else ")")
                for row in rows
            ],
            padding=4,
        )
        axis.axvline(1, color="#888888", linewidth=0.8, linestyle=":")
        axis.set_xlim(0, 1.25 * max(row["ratio"] for row in rows))
        axis.set_title(group["title"], loc="left", fontsize=10, fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("lifecycles per second relative to plain SQL")
    drawing.suptitle(figures["machine"], fontsize=8, color="#555555")
    plt.savefig(path, metadata={"Date": None})


def color(row: dict[str, Any]) -> str:
    """Return the color of a bar: this library, plain SQL and pgbench, or another project."""
    if is_ours(row):
        return "#2f6f9f"
    return "#b0b7bd" if row["name"].startswith(("plain SQL", "pgbench")) else "#d9a05b"
