"""Print text, tables and JSON.

A terminal shows tables and colors if rich is installed. Otherwise the same cells are plain text, in
a pipe with tabs between them.

Stored text is escaped: it cannot send control sequences to the terminal of the reader.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from textwrap import indent
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console
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
_PASSWORD: Final = re.compile(r"(://[^\s:@/]*:)\S*(?=@)|([?&](?:ssl)?password=)[^\s&'\"]*")
EMPTY: Final = "-"

Row = dict[str, Any]
Cell = object
"""The content of a table cell: a text, a number, a time, a duration, or None."""
Columns = Mapping[str, str | Callable[[Row], Cell]]
"""The headers of a table, each with the name of a value in a row, or a function of the row."""


def escape(text: str, *, lines: bool = False) -> str:
    r"""Return a text with control characters as `\x1b`; `lines` keeps line breaks and tabs."""
    kept = "\n\t" if lines else ""
    return "".join(
        # A no-break space is not "printable", but harmless.
        character
        if character.isprintable() or unicodedata.category(character) == "Zs" or character in kept
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shorten(text: str | None, limit: int) -> str | None:
    """Return a text on one line, with at most `limit` characters."""
    if text is None:
        return None
    line = escape(" ".join(text.split()))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def end_sentence(text: str) -> str:
    """Return a text that ends with a full stop, unless it ends a sentence already."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def format_cell(value: Cell) -> str:
    """Return the content of a cell as text."""
    match value:
        case None:
            return EMPTY
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case timedelta():
            return format_duration(value.total_seconds())
        case float():  # all floats of the views are seconds, except `progress_percent`
            return format_duration(value)
        case _:
            return escape(str(value))


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: `2d 03h`, `1m 05s`, `0.042s`."""
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 10:
        return f"{seconds:.3f}s" if seconds < 1 else f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"


def format_percent(percent: float | None) -> str | None:
    """Return a percentage with four digits."""
    return None if percent is None else f"{percent:.4g}%"


def format_attempt(row: Row) -> str:
    """Return the number of an execution's attempts and how many it may have: `1/3`."""
    return f"{row['attempts']}/{row['max_attempts']}"


def shorten_json(value: object) -> str | None:
    """Return a JSON value on one line, with at most 200 characters."""
    return None if value is None else shorten(json.dumps(value, ensure_ascii=False), 200)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document in ASCII, which contains no control character."""
    print(json.dumps(document, indent=2, default=_as_json, allow_nan=False))


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
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
    """Return a cell as a `rich.text.Text`; the name of a status or of a log level has a color."""
    from rich.text import Text  # noqa: PLC0415

    word = format_cell(value)
    return Text(word, style=STYLES.get(word, ""))


def to_cells(columns: Columns, row: Row) -> list[Cell]:
    """Return the cells of a row."""
    return [row[get] if isinstance(get, str) else get(row) for get in columns.values()]


def print_table(columns: Columns, rows: Sequence[Row], *, title: str | None = None) -> None:
    """Print rows below their headers; print nothing if there are no rows."""
    if not rows:
        return
    if (terminal := console()) is not None:
        table = [to_cells(columns, row) for row in rows]
        _print_to_terminal(terminal, list(columns), table, title)
        return
    if title:
        print(f"\n{title}")
    print_lines(columns, rows)


def print_lines(columns: Columns, rows: Sequence[Row]) -> None:
    """Print rows below their headers, one line each; a narrow terminal wraps them."""
    cells = [[format_cell(cell) for cell in to_cells(columns, row)] for row in rows]
    words = [list(columns), *cells]
    widths = [0] * len(columns)
    if sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(*words, strict=True)]
    if (terminal := console()) is not None:
        from rich.text import Text  # noqa: PLC0415
    for row in words:
        padded = [*map(str.ljust, row, widths)]
        if terminal is None:
            print(join_cells(padded))
        else:
            styles = (STYLES.get(word, "") for word in row)
            parts = (part for pair in zip(padded, styles, strict=True) for part in (pair, "  "))
            line = Text.assemble(*parts)
            line.rstrip()
            terminal.print(line, soft_wrap=True)


def join_cells(cells: Iterable[str]) -> str:
    """Return a line of plain text: with tabs for a program that reads it, else with spaces."""
    return "  ".join(cells).rstrip() if sys.stdout.isatty() else "\t".join(cells)


def _print_to_terminal(
    terminal: "Console", headers: list[str], rows: list[list[Cell]], title: str | None
) -> None:
    """Print a table, or the facts of each row if the terminal is too narrow for a table."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    # What is empty in all rows takes room that the others need.
    filled = [
        number
        for number in range(len(headers))
        if not rows or any(row[number] is not None for row in rows)
    ]
    headers = [headers[number] for number in filled]
    rows = [[row[number] for number in filled] for row in rows]
    table = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold",
        pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    cells = [[style_cell(cell) for cell in row] for row in rows]
    needed = 2
    for header, *column in zip(headers, *cells, strict=True):
        longest = max(len(header), *(cell.cell_len for cell in column))
        # Do not fold short cells, and ids and keys, which people copy; fold others to 6 characters.
        whole = header == "ID" or longest <= (20 if header == "KEY" else 14)
        minimum = longest if whole else max(len(header), 6)
        table.add_column(header, overflow="fold", no_wrap=whole, min_width=minimum)
        needed += minimum + 2
    if title:
        terminal.print()
    if title and needed > terminal.width:
        terminal.print(title, style="bold")
    if needed > terminal.width:
        for row in rows:
            print_facts(zip(headers, row, strict=True))
            print()
        return
    for texts in cells:
        table.add_row(*texts)
    terminal.print(table)


def print_facts(facts: Iterable[tuple[str, Cell]]) -> None:
    """Print pairs of a name and a value, one per line."""
    terminal = console()
    for name, value in facts:
        if terminal is None:
            print(join_cells([f"{name:<10}" if sys.stdout.isatty() else name, format_cell(value)]))
        else:
            terminal.print(f"{name:<10}  ", style="dim", end="")
            terminal.print(style_cell(value), soft_wrap=True)


def print_block(title: str, text: str, limit: int | None) -> None:
    """Print a text of several lines, at most its first `limit` characters."""
    shown = escape(text[:limit], lines=True)
    print(f"\n{title}", indent(shown, "  "), sep="\n")
    if limit is not None and len(text) > limit:
        print(f"  … {len(text):,} characters in total: --full prints all of them")


def warn(text: str) -> None:
    """Print a message to stderr, escaped and without passwords."""
    print(escape(mask_passwords(text), lines=True), file=sys.stderr)


def note(text: str) -> None:
    """Tell a person that there was nothing to do; a log or a mail of cron does not need that."""
    if sys.stderr.isatty():
        warn(text)


def mask_passwords(text: str) -> str:
    """Return a text in which the passwords of URLs are replaced by ***."""
    return _PASSWORD.sub(r"\1\2***", text)
