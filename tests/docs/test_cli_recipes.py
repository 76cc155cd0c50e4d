"""The recipes of docs/cli.md do what the page says, with real processes, signals and kills."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from execution_core.cli.parser import build_parser
from execution_core.cli.run import command as run_command
from execution_core.core.errors import ExecutionProblem

from ..cli.run.shell import PATIENCE, PROGRAM, Shell, is_gone, path, wait_for
from ..conftest import Database, open_database
from . import recipes

QUICK = ["--heartbeat", "200ms"]
"""An option that the recipes leave out, so that a stalled run is found within a second."""


class Host(Shell):
    """A host with the files of the recipes below its own directory."""

    def write(self, name: str, *lines: str) -> Path:
        file = self.folder / name
        file.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        file.chmod(0o755)
        return file

    def install(self, text: str) -> str:
        """Replace the paths of a recipe by those of this host."""
        program = text.replace("/opt/jobs/bin/execution-core", str(PROGRAM))
        return re.sub(r"/(opt/jobs|app)/", f"{self.folder}/", program)

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a process; it is killed at the end of the test."""
        given = {"EXECUTION_CORE_URL": self.database.url, "PATH": path(), **environment}
        process = subprocess.Popen(
            words,
            cwd=self.folder,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def call(self, *words: str, **environment: str) -> tuple[int, str]:
        """Return the exit code of a process and all that it printed."""
        code, out, err = self.end(self.start(*words, **environment))
        return code, out.decode() + err

    def cli(self, line: str) -> tuple[int, str]:
        """Run a line of a recipe with the id of the only execution."""
        return self.call("sh", "-c", self.with_id(line))

    def with_id(self, line: str) -> str:
        newest = self.manager.list(limit=1)[0].id
        return re.sub(r"\bID\b", newest, line)

    def cron(self, word: str, **replace: str) -> tuple[int, str]:
        """Run a job of the crontab as cron does; return its exit code and the text of the mail."""
        command = recipes.cron_job(word).command
        for old, new in replace.items():
            assert f" --{old.replace('_', '-')} " in command
            command = re.sub(rf"(--{old.replace('_', '-')}) \S+", rf"\1 {new}", command)
        return self.call(
            *("/bin/sh", "-c", self.install(command)),
            PATH="/usr/bin:/bin", HOME=str(self.folder), LOGNAME="jobs", SHELL="/bin/sh",
        )  # fmt: skip


@pytest.fixture
def any_host(database: Database, tmp_path: Path) -> Iterator[Host]:
    host = Host(database, tmp_path)
    yield host
    host.close()


@pytest.fixture
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    """SQLite only: the recipes do not depend on the database."""
    with open_database("sqlite", request) as database:
        host = Host(database, tmp_path)
        yield host
        host.close()


# Cron


@pytest.mark.slow
def test_cron_recipe_second_call_of_a_day_does_nothing(any_host: Host) -> None:
    host = any_host
    host.write("backup.sh", 'echo "$1" >> ran')
    assert host.cron("backup") == (0, "")
    assert host.cron("backup") == (0, "")
    assert (host.folder / "ran").read_text() == "/home\n"
    found = host.execution
    assert (found.type, found.status, found.attempts) == ("backup.sh", "completed", 1)
    assert (found.max_attempts, found.timeout) == (3, timedelta(minutes=30))
    key = str(found.idempotency_key).removeprefix("backup-")
    assert abs(date.fromisoformat(key) - date.today()) <= timedelta(days=1)


def test_cron_recipe_failure_is_mailed(host: Host) -> None:
    """The lines for the operator print nothing until there is something to look at."""
    for word in ("--attention", "sweep"):
        assert host.cron(word)[1] == "", word
    host.write("backup.sh", "echo 'disk is full' >&2", "exit 3")
    code, mail = host.cron("backup", backoff="10ms")
    assert code == 3
    assert mail.count("disk is full") == 3
    assert "Attempt 3 of 3" in mail
    code, mail = host.cron("backup")
    assert (code, "MAX_RETRIES_EXCEEDED" in mail) == (1, True)
    _, mail = host.cron("--attention")
    assert "backup.sh" in mail
    assert "disk is full" in mail
    stalled = host.manager.create("import")
    host.manager.start(stalled.id)
    _, mail = host.cron("sweep", stalled_after="1ms")
    assert stalled.id in mail
    assert host.cron("prune", older_than="1ms", keys_older_than="1ms")[1] == ""
    assert host.manager.list() == []


def test_cron_recipe_variables_are_known() -> None:
    variables, jobs = recipes.crontab()
    assert variables.keys() == {"EXECUTION_CORE_URL", "MAILTO", "PATH"}
    assert len(jobs) == 5
    for job in jobs:
        assert "/opt/jobs/bin/execution-core " in job.command  # the PATH of cron is short


def test_cron_recipe_keys_are_unique_when_the_clock_changes() -> None:
    """A year of hours in Berlin: keys of the recipe, and those that the page warns of."""
    if not Path("/usr/share/zoneinfo/Europe/Berlin").exists():
        pytest.skip("no time zones are installed")
    berlin = ZoneInfo("Europe/Berlin")
    first = datetime(2030, 1, 1, tzinfo=UTC)
    hours = [first + timedelta(hours=each, minutes=30) for each in range(365 * 24)]
    local = [hour.astimezone(berlin) for hour in hours]

    def keys(times: list[datetime], word: str, options: str) -> list[str]:
        (form,) = re.findall(rf"{word}-\$\(date{options} \+(\S+)\)", recipes.cron_job(word).command)
        return [time.strftime(form) for time in times]

    daily = keys(local, "backup", "")
    assert {*zip(daily, (hour.date() for hour in local), strict=True)} == {
        (key, date.fromisoformat(key)) for key in daily
    }
    hourly = keys(hours, "import", " -u")
    assert len({*hourly}) == len(hours)
    assert len({*keys(local, "import", " -u")}) == len(hours) - 1  # an hour would be skipped
    nightly = [hour.astimezone(UTC) for hour in local if hour.hour == 1]
    assert len({*keys(nightly, "backup", "")}) < len(nightly)  # a day would be skipped


# systemd


def test_systemd_recipe_units_are_valid(host: Host) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    names = []
    for text in recipes.blocks("systemd timer", "ini"):
        names.append(f"report.{'service' if '[Service]' in text else 'timer'}")
        (host.folder / names[-1]).write_text(host.install(text))
    code, printed = host.call("systemd-analyze", "verify", *(f"./{name}" for name in names))
    assert (code, "report." in printed) == (0, False), printed


def test_systemd_recipe_stop_is_recorded_and_next_start_retries(host: Host) -> None:
    service = recipes.units()["service"]["Service"]
    assert recipes.exec_start()[-1].count("--backoff 1m ") == 1
    command = [
        host.install(word).replace("--backoff 1m ", "--backoff 1ms ")
        for word in recipes.exec_start()
    ]
    host.write(
        "report.sh",
        "[ $EXECUTION_ATTEMPT = 2 ] && exit 0",
        "trap 'echo stopping; exit 0' TERM",
        "echo $$ >> pids; while :; do sleep 0.05; done",
    )
    began = host.start(*command)
    wait_for(host.pids)
    code, printed = host.call(*command)
    assert (str(code), printed) == (service["SuccessExitStatus"], "")
    began.terminate()  # KillMode=mixed: the signal goes to the first process alone
    assert host.end(began)[:2] == (143, b"stopping\n")
    wait_for(lambda: all(map(is_gone, host.pids())))
    assert host.call(*command) == (0, "")
    assert host.attempts() == [("failed", "interrupted"), ("completed", None)]
    key = str(host.execution.idempotency_key).removeprefix("report-")
    assert abs(date.fromisoformat(key) - datetime.now(UTC).date()) <= timedelta(days=1)


def test_systemd_recipe_stop_waits_longer_than_kill_after() -> None:
    units = recipes.units()
    default = build_parser().parse_args(["run", "--", "x"]).kill_after
    stop = units["service"]["Service"]["TimeoutStopSec"].removesuffix("s")
    assert timedelta(seconds=int(stop)) > default
    assert units["service"]["Service"]["KillMode"] == "mixed"
    # Key and schedule use the same clock.
    assert "date -u" in recipes.exec_start()[-1]
    assert units["timer"]["Timer"]["OnCalendar"].endswith(" UTC")


# Container


def start_container(host: Host, command: list[str]) -> tuple["subprocess.Popen[bytes]", int]:
    """Start a command as the first process of new namespaces; return it, and its pid outside."""
    isolate = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.getuid() != 0:
        isolate.append("--map-root-user")
    if shutil.which("unshare") is None or host.call(*isolate, "true")[0] != 0:
        pytest.skip("unshare is not permitted here, so there is no process 1")
    process = host.start(*isolate, *command)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: process.poll() is not None or children.read_text().split())
    return process, int(children.read_text().split()[0])


def container_command(host: Host) -> list[str]:
    program, run, *words = map(host.install, recipes.container_command())
    assert program == "execution-core"
    return [str(PROGRAM), run, *QUICK, *(("1s" if word == "30s" else word) for word in words)]


def test_container_recipe_stop_reaches_the_command(host: Host) -> None:
    host.write(
        "import.sh",
        "trap 'echo stopped; exit 0' TERM",
        "for i in 1 2 3 4 5; do (true &); done; sleep 0.3",
        "grep -l '^State:.*Z' /proc/[0-9]*/status; ls -d /proc/1",
        "touch begun; while :; do sleep 0.05; done",
    )
    process, first = start_container(host, container_command(host))
    wait_for((host.folder / "begun").exists)
    os.kill(first, signal.SIGTERM)
    code, out, err = host.end(process)
    assert (code, out) == (143, b"/proc/1\nstopped\n"), err  # it found no zombies
    assert host.attempts() == [("failed", "interrupted")]
    assert host.is_("retrying")


def test_container_recipe_next_start_after_kill_takes_over(host: Host) -> None:
    host.write(
        "import.sh",
        "[ $EXECUTION_ATTEMPT = 1 ] || exit 0",
        "touch begun; setsid sh -c 'touch left; exec sleep 600'",
    )
    command = container_command(host)
    process, first = start_container(host, command)
    wait_for((host.folder / "left").exists)
    os.kill(first, signal.SIGKILL)
    assert process.wait(PATIENCE) != 0
    codes = call_until_completed(lambda: start_container(host, command)[0].wait(PATIENCE))
    assert codes <= {75, 0}
    assert host.attempts() == [("timed_out", "stalled"), ("completed", None)]


def test_container_recipe_grace_period_of_docker_is_longer_than_kill_after() -> None:
    words = recipes.container_command()
    options = build_parser().parse_args(words[1:])
    assert options.kill_after <= timedelta(seconds=10) / 2


def call_until_completed(call: Callable[[], int]) -> set[int]:
    """Repeat a call until it returns 0; return all results."""
    codes: set[int] = set()
    limit = time.monotonic() + PATIENCE
    while 0 not in codes:
        assert time.monotonic() < limit, codes
        codes.add(call())
    return codes


# Batch


def test_batch_recipe_killed_resumes_after_the_checkpoint(host: Host) -> None:
    script, start = recipes.blocks("Batch with progress", "sh")
    (host.folder / "import.sh").write_text(script)
    (host.folder / "import.sh").chmod(0o755)
    reads = "cat"  # it must not read the list of items
    host.write("import-item", f'echo "$EXECUTION_ATTEMPT $1" >> imported; {reads}; sleep 0.05')
    items = [f"item {number}" for number in range(8)]
    (host.folder / "items.txt").write_text("\n".join(items))  # the last line has no end
    imported = host.folder / "imported"

    def items_of(attempt: int) -> list[str]:
        lines = imported.read_text().splitlines() if imported.exists() else []
        return [line[2:] for line in lines if line.startswith(f"{attempt} ")]

    line = start.replace("run ", f"run {' '.join(QUICK)} ", 1).replace(" 30s ", " 1s ")
    assert line.count(" 1s ") == 1
    process = host.start("sh", "-c", f"exec {line}")
    wait_for(lambda: len(items_of(1)) >= 3)
    process.kill()
    process.wait()
    codes = call_until_completed(lambda: host.call("sh", "-c", line)[0])
    assert codes <= {75, 0}
    assert host.attempts() == [("timed_out", "stalled"), ("completed", None)]
    first, second = items_of(1), items_of(2)
    begun = [entry.message for entry in host.manager.logs(host.execution.id)][::-1]
    assert begun == ["begin after 0 of 8 items", f"begin after {8 - len(second)} of 8 items"]
    # Nothing is missing; at most the item that was killed before its checkpoint is repeated.
    saved = 8 - len(second)
    assert second == items[saved:]
    assert first in (items[:saved], items[: saved + 1])
    assert 2 <= saved < 8
    progress = host.execution.progress
    assert progress is not None
    assert (progress.current, progress.total, progress.message) == (8, 8, "item 7")


@pytest.mark.exhaustive
def test_batch_recipe_failed_item_ends_the_script(host: Host) -> None:
    script, _ = recipes.blocks("Batch with progress", "sh")
    (host.folder / "import.sh").write_text(script)
    host.write("import-item", 'echo "$1" >> imported; [ "$1" != b ] || exit 7')
    (host.folder / "items.txt").write_text("a\nb\nc\n")
    assert host.run("--", "sh", "import.sh", "items.txt")[0] == 7
    assert (host.folder / "imported").read_text() == "a\nb\n"
    assert host.execution.checkpoints == {"imported": "1"}


# Is it still running?


def test_running_recipe_shows_and_cancels(host: Host) -> None:
    look, sweep, _, cancel = recipes.blocks("Is it still running?", "sh")
    listing, show, watch = look.splitlines()
    command = [*QUICK, "--key", "k", "--", "sh", "-c", "touch begun; while :; do sleep 0.05; done"]
    process = host.begin(*command)
    wait_for((host.folder / "begun").exists)
    id, worker = host.execution.id, host.execution.worker
    for line in (listing, show):
        code, printed = host.cli(line)
        assert (code, id[:13] in printed, str(worker) in printed) == (0, True, True), printed
    assert re.search(r"^heartbeat\s.*\d+s( ago)?$", printed, re.MULTILINE), printed
    assert str(worker).endswith(f":{process.pid}")
    assert host.cli(sweep)[0] == 0
    assert host.is_("running")  # it sends heartbeats
    code, _, err = host.run(*command)
    assert (code, "ALREADY_RUNNING" in err) == (75, True)
    watching = host.start("sh", "-c", host.with_id(watch))
    code, printed = host.cli(cancel)
    assert (code, "cancelled" in printed) == (0, True)
    assert host.end(process)[0] == 143
    code, out, _ = host.end(watching)
    assert (code, b"cancelled" in out) == (1, True)


def test_stalled_recipe_sweeps_and_allows_another_attempt(host: Host) -> None:
    _, sweep, more, _ = recipes.blocks("Is it still running?", "sh")
    script = "touch begun; [ $EXECUTION_ATTEMPT = 2 ] || exec sleep 600"
    command = [*QUICK, "--key", "k", "--", "sh", "-c", script]
    process = host.begin(*command)
    wait_for((host.folder / "begun").exists)
    process.kill()
    process.wait()
    assert " 1m" in sweep

    def is_swept() -> bool:
        return host.execution.id in host.cli(sweep.replace(" 1m", " 1s"))[1]

    wait_for(is_swept)
    assert host.is_("timed_out")
    code, _, err = host.run(*command)
    assert (code, "MAX_RETRIES_EXCEEDED" in err) == (1, True)
    retry, again = more.splitlines()
    code, printed = host.cli(retry)
    assert (code, "retrying" in printed) == (0, True)
    assert host.cli(again)[0] == 0
    assert host.attempts() == [("timed_out", "stalled"), ("completed", None)]


# Exit codes and messages


def test_exit_codes_of_run_are_those_of_its_help() -> None:
    listed = re.findall(r"^  (\d\S*) ", run_command.EPILOG, re.MULTILINE)
    shown = [code for code, _ in recipes.table("Exit codes", "of `run`")]
    assert [code for code in shown if code not in ("0", "other")] == listed


@pytest.mark.exhaustive
def test_messages_of_the_page_are_those_of_the_program(host: Host) -> None:
    rows = recipes.table("What you see and what to do", "what to do")

    def assert_advice(message: str, action: str) -> None:
        (what,) = (what for seen, what in rows if message in seen)
        assert f"`{action}" in what

    job = ["--key", "K", "--", "sh", "-c", "echo ran >> ran"]
    assert host.run(*job)[0] == 0
    code, _, err = host.run(*job)
    assert (code, "was completed at" in err) == (0, True)
    assert_advice("was completed at", "run --key K --again -- COMMAND`")
    assert host.run("--again", *job)[0] == 0
    assert (host.folder / "ran").read_text() == "ran\nran\n"
    code, _, err = host.run("--key", "K", "--", "true")
    assert (code, "IDEMPOTENCY_CONFLICT" in err) == (1, True)
    replayed = host.manager.replay(host.manager.list()[0].id)
    assert host.cli("execution-core run --id ID")[0] == 0
    assert host.manager.get(replayed.id).status == "completed"
    assert_advice("pending", "run --id ID`")
    job[1] = "released"
    waiting = host.manager.create("sh", {"command": job[3:]}, idempotency_key=job[1])
    host.manager.start(waiting.id)
    host.manager.release(waiting.id)
    assert host.run(*job)[0] == 0
    job[1] = "cancelled"
    unwanted = host.manager.create("sh", {"command": job[3:]}, idempotency_key=job[1])
    host.manager.cancel(unwanted.id)
    code, _, err = host.run(*job)
    assert (code, "was cancelled at" in err) == (1, True)
    assert host.run("--again", *job)[0] == 0
    assert_advice("was cancelled at", "run --key K --again -- COMMAND`")
    (host.folder / "empty").mkdir()
    code, _, err = host.run("--", "true", url="sqlite:///empty/none.db")
    assert (code, "INVALID_VALUE: url names a file that does not exist" in err) == (1, True)
    codes = {each.code for each in subclasses(ExecutionProblem)}
    quoted = {word for seen, _ in rows for word in re.findall(r"^`([A-Z]+_[A-Z_]+)", seen)}
    assert len(quoted) == 4
    assert quoted <= codes


def subclasses(kind: type[ExecutionProblem]) -> Iterator[type[ExecutionProblem]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)
