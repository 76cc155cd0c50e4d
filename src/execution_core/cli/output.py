"""How things are shown: tables and colours where rich and a terminal are there, else plain text.

Whatever was stored by somebody else is escaped: no text can move the cursor of who reads it.
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
"""Unicode's categories of what is not seen: controls, directions, line separators, surrogates."""
_PASSWORD: Final = re.compile(r"(://[^\s:@/]*:)\S*(?=@)|([?&]password=)[^\s&'\"]*")
NOTHING: Final = "-"
WHOLE: Final = 12
"""Characters of a cell that a terminal's table never folds."""
FOLDED: Final = 6
"""To how many it may fold longer ones."""

Cell = object
"""What stands in a table: a text, a number, a time, a duration, or None."""


def escape(text: str, *, lines: bool = False) -> str:
    r"""Return a text in which every control character is spelt: `\x1b`. Lines may be kept."""
    return "".join(
        character
        if unicodedata.category(character) not in _HIDDEN or (lines and character in "\n\t")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shorten(text: str, most: int) -> str:
    """Return a text of one line, of `most` characters."""
    line = escape(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def format_cell(value: Cell) -> str:
    """Return what a cell holds as text."""
    match value:
        case None:
            return NOTHING
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case timedelta():
            return format_duration(value.total_seconds())
        case _:
            return escape(str(value))


def format_duration(seconds: float | None) -> str:
    """Return a time span in its two largest units: `2d 3h`, `1m 05s`, `0.042s`."""
    if seconds is None:
        return NOTHING
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
    return NOTHING if value is None else json.dumps(value, ensure_ascii=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document, in ASCII: nothing in it can reach the terminal as it is."""
    print(json.dumps(document, indent=2, default=_as_json, allow_nan=False))


def _as_json(value: object) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise ValueError(f"{type(value).__name__} is no JSON")


def console() -> "Console | None":
    """Return rich's console where standard output is a terminal and rich is installed."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError:
        return None
    return Console(highlight=False, emoji=False, markup=False)


def styled(value: Cell) -> "Text":
    """Return a cell for rich; a status or a level has its mode."""
    from rich.text import Text  # noqa: PLC0415

    word = format_cell(value)
    return Text(word, style=STYLES.get(word, ""))


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, title: str | None = None
) -> None:
    """Print rows below their headers, or nothing when there are none."""
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
    headers: Sequence[str], rows: Sequence[Sequence[Cell]], room: int, *, title: str | None = None
) -> "RenderableType | None":
    """Return the same as a table of rich's, or None where there is no room for all its columns."""
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
        whole = header == "ID" or longest <= WHOLE  # what people copy, and single words
        least = longest if whole else max(cell_len(header), FOLDED)
        table.add_column(header, overflow="fold", no_wrap=whole, min_width=least)
        needed += least + 2
    for row in rows:
        table.add_row(*map(styled, row))
    return table if needed <= room else None


def print_facts(facts: Sequence[tuple[str, Cell]]) -> None:
    """Print names and what they stand for, one a line."""
    terminal = console()
    for name, value in facts:
        if terminal is None:
            print(f"{name:<10}  {format_cell(value)}")
        else:
            from rich.text import Text  # noqa: PLC0415

            line = Text.assemble((f"{name:<10}  ", "dim"), styled(value))
            terminal.print(line, soft_wrap=True)


def print_block(title: str, text: str, most: int | None) -> None:
    """Print a text of several lines, its first `most` characters."""
    shown = escape(text[:most], lines=True)
    print(f"\n{title}")
    for line in shown.splitlines():
        print(f"  {line}")
    if most is not None and len(text) > most:
        print(f"  … {len(text):,} characters in all: --full shows them")


def warn(text: str) -> None:
    """Tell the reader something beside the output itself; what it quotes is escaped."""
    print(escape(mask_passwords(text), lines=True), file=sys.stderr)


def mask_passwords(text: str) -> str:
    """Return a text without the passwords of the URLs in it."""
    return _PASSWORD.sub(r"\1\2***", text)
