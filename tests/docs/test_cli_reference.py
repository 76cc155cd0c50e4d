"""docs/cli.md is what the parser says, and every command can be explained to a stranger."""

import re
from pathlib import Path

import pytest

from tools import cli_reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = dict(cli_reference.commands())


def test_the_page_is_what_the_parser_says() -> None:
    assert PAGE.read_text() == cli_reference.page(), "run: make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_argument_is_explained(name: str) -> None:
    command = COMMANDS[name]
    assert re.match(r"[A-Z].*\.", command.description or "", re.DOTALL)
    for action in command._actions:
        assert action.help, action.dest
    assert f"## {name}\n" in PAGE.read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_can_be_printed(name: str) -> None:
    assert COMMANDS[name].format_help().startswith(f"usage: execution-core {name} ")
