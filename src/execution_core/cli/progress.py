"""The progress of an execution, its own or that of its children, and how long it is silent."""

from . import output
from .output import Row


def measure(row: Row) -> tuple[int, int, float] | None:
    """Return the current and total units and the percentage: its own, else its children's."""
    if row["progress_current"] is not None:
        return row["progress_current"], row["progress_total"], row["progress_percent"]
    children = row["children"]
    return children and (children["finished"], children["total"], children["percent"])


def format_done(row: Row) -> str | None:
    """Return the progress as `30/100 30%`."""
    if (measured := measure(row)) is None:
        return None
    current, total, percent = measured
    return f"{current:,}/{total:,} {output.format_percent(percent)}"


def describe_children(children: Row) -> str:
    """Return the counts of children as `12 of 200 finished, 3 failed, 5 running`."""
    counts = (f"{children[name]:,} {name.replace('_', ' ')}" for name in _NAMED if children[name])
    return ", ".join([f"{children['finished']:,} of {children['total']:,} finished", *counts])


_NAMED = ("failed", "timed_out", "cancelled", "running", "retrying")


def silent_seconds(row: Row) -> float | None:
    """Return the time since the last heartbeat, None while children are live.

    A parent that awaits its children sends no heartbeats. The views do not tell it from another
    one that has live children.
    """
    children = row["children"]
    if children and children["finished"] < children["total"]:
        return None
    seconds: float | None = row["silent_seconds"]
    return seconds
