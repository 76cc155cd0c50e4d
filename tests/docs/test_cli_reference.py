"""docs/cli.md matches the parser, and every command and argument has a help text."""

import re
from pathlib import Path

import pytest

from tools import cli_reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = dict(cli_reference.commands())


def test_cli_reference_matches_parser() -> None:
    assert PAGE.read_text() == cli_reference.page(), "run: make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_cli_help_describes_every_argument(name: str) -> None:
    command = COMMANDS[name]
    assert re.match(r"[A-Z].*\.", command.description or "", re.DOTALL)
    for action in command._actions:
        assert action.help, action.dest
    assert f"## {name}\n" in PAGE.read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_cli_help_is_printed(name: str) -> None:
    assert COMMANDS[name].format_help().startswith(f"usage: execution-core {name} ")
