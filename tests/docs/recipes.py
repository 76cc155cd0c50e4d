"""Read the recipes of docs/cli.md, and apply the rules of the programs that read them."""

import configparser
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tools.cli_reference import MARKER

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (.+?) \| (.+) \|$", re.MULTILINE)


def section(heading: str) -> str:
    """Return the written text below a heading."""
    written = PAGE.read_text().partition(MARKER)[0]
    found = re.split(r"^## (.+)\n", written, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))[heading]


def blocks(heading: str, language: str) -> list[str]:
    return [code for name, code in FENCED.findall(section(heading)) if name == language]


def table(heading: str, header: str) -> list[tuple[str, str]]:
    """Return the rows of the table whose second header is given."""
    text = section(heading).split(f"| {header} |\n|---|---|\n")[1].split("\n\n")[0]
    return ROW.findall(text)


@dataclass(frozen=True)
class CronJob:
    """A line of a crontab: what cron gives to /bin/sh."""

    schedule: list[str]
    command: str


def crontab() -> tuple[dict[str, str], list[CronJob]]:
    """Return the variables and the jobs of the crontab."""
    (text,) = blocks("Cron job", "crontab")
    variables, jobs = {}, []
    for line in filter(None, text.splitlines()):
        if line.startswith("#"):
            continue
        if found := re.fullmatch(r"([A-Z_]+)=(.*)", line):
            variables[found[1]] = found[2]
            continue
        *schedule, command = line.split(maxsplit=5)
        assert not re.search(r"(?<!\\)%", command), "cron would end the command there"
        jobs.append(CronJob(schedule, command.replace(r"\%", "%")))
    return variables, jobs


def cron_job(word: str) -> CronJob:
    """Return the only job whose command contains a word."""
    (job,) = (job for job in crontab()[1] if word in job.command)
    return job


def units() -> dict[str, configparser.ConfigParser]:
    """Return the unit files by their suffix: `service` and `timer`."""
    found = {}
    for text in blocks("systemd timer", "ini"):
        unit = configparser.ConfigParser(interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(text)
        found["service" if "Service" in unit else "timer"] = unit
    return found


def exec_start() -> list[str]:
    """Return the words of the command that systemd starts."""
    line = units()["service"]["Service"]["ExecStart"]
    assert not re.search(r"(?<!\$)\$(\$\$)*(?!\$)", line), "systemd would replace a variable"
    assert not re.search(r"(?<!%)%(%%)*(?!%)", line), "systemd would replace a specifier"
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


def container_command() -> list[str]:
    """Return what `docker run` of the recipe executes: the ENTRYPOINT and the given arguments."""
    (dockerfile,) = blocks("Container", "dockerfile")
    instructions = dict(line.split(maxsplit=1) for line in dockerfile.splitlines())
    (start,) = blocks("Container", "sh")
    words = shlex.split(start)
    given = words[words.index("import-image") + 1 :]
    assert json.loads(instructions["CMD"]) == given[given.index("--") :]
    return [*json.loads(instructions["ENTRYPOINT"]), *given]
