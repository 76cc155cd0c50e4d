"""The reference in docs/cli.md matches the parser; every command and argument has a help text."""

import re
from pathlib import Path

import pytest

from tools import cli_reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = dict(cli_reference.commands())


def test_cli_reference_matches_parser() -> None:
    assert PAGE.read_text() == cli_reference.page(), "run: make docs"


def test_cli_reference_keeps_what_is_above_the_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_reference, "PAGE", tmp_path / "cli.md")
    cli_reference.PAGE.write_text(f"# Recipes\n{cli_reference.MARKER}old")
    written, _, reference = cli_reference.page().partition(cli_reference.MARKER)
    assert written == "# Recipes\n"
    assert reference == PAGE.read_text().partition(cli_reference.MARKER)[2]
    cli_reference.PAGE.write_text("# Recipes\n")
    with pytest.raises(ValueError, match="has no line"):
        cli_reference.page()


@pytest.mark.parametrize("name", COMMANDS)
def test_cli_help_describes_every_argument(name: str) -> None:
    command = COMMANDS[name]
    assert re.match(r"[A-Z].*\.", command.description or "", re.DOTALL)
    for action in command._actions:
        assert action.help, action.dest
    reference = PAGE.read_text().partition(cli_reference.MARKER)[2]
    assert f"\n### {name}\n" in reference


@pytest.mark.parametrize("name", COMMANDS)
def test_cli_help_is_printed(name: str) -> None:
    assert COMMANDS[name].format_help().startswith(f"usage: execution-core {name} ")
