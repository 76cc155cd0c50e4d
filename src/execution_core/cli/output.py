"""Print text, tables and JSON: with rich in a terminal where it is installed, else plain text.

Stored text is escaped: it cannot send control sequences to the terminal of the reader.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

STYLES: Final = {
    "pending": "dim",
    "running": "cyan",
    "completed": "green",
    "failed": "red",
    "retrying": "yellow",
    "timed_out": "magenta",
    "cancelled": "dim",
    "warning": "yellow",
    "error": "red",
    "critical": "bold red",
}
_HIDDEN: Final = ("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn")
"""Unicode categories of invisible characters, such as controls, line separators, surrogates."""
_PASSWORD: Final = re.compile(r"(://[^\s:@/]*:)\S*(?=@)|([?&]password=)[^\s&'\"]*")
EMPTY: Final = "-"
MAX_UNFOLDED: Final = 12
"""A table does not fold cells of at most this many characters."""
MIN_FOLDED: Final = 6
"""A longer cell may be folded to this width."""

Cell = object
"""The content of a table cell: a text, a number, a time, a duration, or None."""


def escape(text: str, *, lines: bool = False) -> str:
    r"""Return a text with each control character as an escape such as `\x1b`.

    Args:
        text: any text.
        lines: keep line breaks and tabs.
    """
    return "".join(
        character
        if unicodedata.category(character) not in _HIDDEN or (lines and character in "\n\t")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shorten(text: str, limit: int) -> str:
    """Return a text on one line, with at most `limit` characters."""
    line = escape(" ".join(text.split()))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def format_cell(value: Cell) -> str:
    """Return the content of a cell as text."""
    match value:
        case None:
            return EMPTY
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case timedelta():
            return format_duration(value.total_seconds())
        case _:
            return escape(str(value))


def format_duration(seconds: float | None) -> str:
    """Return a duration in its two largest units: `2d 03h`, `1m 05s`, `0.042s`."""
    if seconds is None:
        return EMPTY
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 10:
        return f"{seconds:.3f}s" if seconds < 1 else f"{seconds:.1f}s"
    whole = int(seconds)
    for size, unit, part, parts in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // part:02}{parts}"
    return f"{whole}s"


def compact(value: object) -> str:
    """Return a JSON value on one line."""
    return EMPTY if value is None else json.dumps(value, ensure_ascii=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document in ASCII, which contains no control character."""
    print(json.dumps(document, indent=2, default=_as_json, allow_nan=False))


def _as_json(value: object) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise ValueError(f"{type(value).__name__} is not valid JSON")


def console() -> "Console | None":
    """Return a rich console if stdout is a terminal and rich is installed, else None."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError:
        return None
    return Console(highlight=False, emoji=False, markup=False)


def style_cell(value: Cell) -> "Text":
    """Return a cell as a `rich.text.Text`; the name of a status or of a log level is coloured."""
    from rich.text import Text  # noqa: PLC0415

    word = format_cell(value)
    return Text(word, style=STYLES.get(word, ""))


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, title: str | None = None
) -> None:
    """Print rows below their headers; print nothing if there are no rows."""
    listed = list(rows)
    if not listed:
        return
    if (terminal := console()) is not None:
        if title:
            terminal.print()
        if (table := build_table(headers, listed, terminal.width, title=title)) is not None:
            terminal.print(table)
            return
        for row in listed:
            print_facts(list(zip(headers, row, strict=True)))
            print()
        return
    if title:
        print(f"\n{title}")
    words = [list(headers), *([format_cell(cell) for cell in row] for row in listed)]
    widths = [max(len(row[n]) for row in words) for n in range(len(headers))]
    for row in words:
        line = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
        print(line.rstrip())


def build_table(
    headers: Sequence[str], rows: Sequence[Sequence[Cell]], width: int, *, title: str | None = None
) -> "RenderableType | None":
    """Build a rich table, or return None if it does not fit the width."""
    from rich import box  # noqa: PLC0415
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold",
        pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    needed = 2
    for number, header in enumerate(headers):
        longest = max(cell_len(header), *(cell_len(format_cell(row[number])) for row in rows))
        whole = header == "ID" or longest <= MAX_UNFOLDED  # people copy ids
        minimum = longest if whole else max(cell_len(header), MIN_FOLDED)
        table.add_column(header, overflow="fold", no_wrap=whole, min_width=minimum)
        needed += minimum + 2
    for row in rows:
        table.add_row(*map(style_cell, row))
    return table if needed <= width else None


def print_facts(facts: Sequence[tuple[str, Cell]]) -> None:
    """Print pairs of a name and a value, one per line."""
    terminal = console()
    for name, value in facts:
        if terminal is None:
            print(f"{name:<10}  {format_cell(value)}")
        else:
            from rich.text import Text  # noqa: PLC0415

            line = Text.assemble((f"{name:<10}  ", "dim"), style_cell(value))
            terminal.print(line, soft_wrap=True)


def print_block(title: str, text: str, limit: int | None) -> None:
    """Print a text of several lines, at most its first `limit` characters."""
    shown = escape(text[:limit], lines=True)
    print(f"\n{title}")
    for line in shown.splitlines():
        print(f"  {line}")
    if limit is not None and len(text) > limit:
        print(f"  … {len(text):,} characters in total: --full prints all of them")


def warn(text: str) -> None:
    """Print a message to stderr, escaped and without passwords."""
    print(escape(mask_passwords(text), lines=True), file=sys.stderr)


def mask_passwords(text: str) -> str:
    """Return a text in which the passwords of URLs are replaced by ***."""
    return _PASSWORD.sub(r"\1\2***", text)
