"""Write docs/cli.md from the parser of the command line.

python tools/cli_reference.py
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from execution_core.cli.parser import parser

PAGE: Final = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD: Final = """\
# Command line

<!-- Made by tools/cli_reference.py from the parser: change that. -->

`execution-core COMMAND` works on the database that `--url` names, else `EXECUTION_CORE_URL` (which
keeps a password out of the list of processes), else `sqlite:///executions.db`. Tables and colours
come with `pip install 'execution-core[cli]'`; without it, and wherever the output is no terminal,
it is plain text. What others have stored is shown with its control characters escaped.

An execution is named by its id or by any beginning of it that no other has, as in git. A duration
is a number with its unit, `ms`, `s`, `m`, `h` or `d`: `90s`, `1.5h`, `1h30m`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | refused, or failed: standard error has the problem's code and message |
| 2 | misused: standard error has the usage |
| 3 | there is no such execution |
| 130 | interrupted with Ctrl-C (`watch` ends with 0) |

`run` has further ones, below. Reading commands take `--json`: one JSON document whose keys are the
columns of the [views](sql.md), stable as they are; in `show`, `execution` and `logs` have the
fields of the library's `Execution` and `LogEntry`, with times as text and durations in seconds.
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *(part for name, one in commands() for part in section(name, one))])


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Return each command's name and parser."""
    for action in parser()._actions:  # noqa: SLF001 - argparse has no public way to look into it
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            yield from action.choices.items()


def section(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    """Return the lines of a command."""
    actions = [a for a in command._actions if a.dest not in ("help", "url")]  # noqa: SLF001
    yield f"## {name}\n"
    yield f"```\nexecution-core {name} {' '.join(map(usage, actions))}".rstrip() + "\n```\n"
    yield prose(command, command.description or "")
    if actions:
        yield "| argument | |\n|---|---|"
        yield from (f"| `{words(a)}` | {cell(a.help or '')} |" for a in actions)
        yield ""
    if command.epilog:
        yield prose(command, command.epilog)


def prose(command: argparse.ArgumentParser, text: str) -> str:
    """Return a text as it was written where its lines count, else as a paragraph."""
    if command.formatter_class is argparse.RawDescriptionHelpFormatter:
        return f"```text\n{text.strip()}\n```\n"
    return f"{' '.join(text.split())}\n"


def usage(action: argparse.Action) -> str:
    """Return how an argument stands in the usage."""
    if action.nargs == argparse.REMAINDER:
        return f"-- {words(action)} ..."
    shown = words(action)
    optional = not action.required or action.nargs == "?"
    if not action.option_strings:
        optional = action.nargs == "?"
    repeated = " ..." if isinstance(action, argparse._AppendAction) else ""  # noqa: SLF001
    return f"[{shown}]{repeated}" if optional else f"{shown}{repeated}"


def words(action: argparse.Action) -> str:
    """Return an argument with its value."""
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if not action.option_strings:
        return str(value)
    takes = action.nargs != 0
    return action.option_strings[-1] + (f" {value}" if takes else "")


def cell(text: str) -> str:
    """Return a text as it may stand in a table."""
    return " ".join(text.split()).replace("%%", "%").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
