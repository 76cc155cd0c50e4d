"""The URL that a command gets: its password is in a file, which exists until `run` ends."""

import json
import os
import resource
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url

from execution_core import ExecutionManager, SqlExecutionStore, migrate
from execution_core.cli.run.shared_database import SharedDatabase, _share_url
from execution_core.sql.driver.engine import create_sync_engine

from ...conftest import Database
from ...support import postgres
from .shell import Shell, is_gone, wait_for

SHOWS: Final = (
    "import json, os, pathlib, re, stat; url = os.environ['EXECUTION_CORE_URL'];"
    " file = pathlib.Path(re.search('passfile=([^&]*)', url)[1].replace('%2F', '/'));"
    " print(json.dumps([url, str(file), stat.S_IMODE(file.stat().st_mode), file.read_text()]))"
)
PASSWORDS: Final = (
    "plain",
    r"colon:back\slash",
    "at@percent%41slash/question?hash#",
    "spaces and 'quotes\" ",
    "ümläut €漢字",
    "#",
    "\\",
    "a+b&c=d",
)
ODD: Final = "".join(PASSWORDS[1:])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary directory of `run`."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def trusted(postgres_database: Database, tmp_path: Path) -> Iterator[Shell]:
    """PostgreSQL, which asks for no password: the command gets it nevertheless."""
    postgres_database.empty()
    shell = Shell(postgres_database, tmp_path)
    yield shell
    shell.close()


@contextmanager
def share_url(url: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the URL for a command, and the file with its password."""
    shared, secret = _share_url(url, str(folder))
    with SharedDatabase({}, str(folder), secret).password():
        yield shared, folder / "password"


def with_password(url: str, password: str = "s3cr3t") -> str:
    return make_url(url).set(password=password).render_as_string(hide_password=False)


def test_shared_url_has_a_private_password_file(trusted: Shell, folder: Path) -> None:
    log = "env -u EXECUTION_CORE_SOCKET execution-core log inside"
    script = f'env; {sys.executable} -c "{SHOWS}"; {log}'
    code, out, err = trusted.run(
        "--", "sh", "-c", script, url=with_password(trusted.database.url, "s3:cr\\3t")
    )
    *environment, shown = out.decode().splitlines()
    url, file, mode, content = json.loads(shown)
    assert (code, err) == (0, "")
    assert not any("cr" in each and "s3" in each for each in environment)
    assert "s3" not in url
    assert (Path(file).parent.parent, mode, content) == (folder, 0o600, "*:*:*:*:s3\\:cr\\\\3t\n")
    assert [entry.message for entry in trusted.manager.logs(trusted.execution.id)] == ["inside"]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_shared_url_file_is_deleted_when_run_is_ended(
    trusted: Shell, folder: Path, how: signal.Signals
) -> None:
    url = with_password(trusted.database.url)
    process = trusted.begin("--", "sh", "-c", "echo $$ >> pids; exec sleep 600", url=url)
    wait_for(trusted.pids)
    (file,) = folder.glob("*/password")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    process.send_signal(how)
    process.wait()
    wait_for(lambda: not list(folder.iterdir()))
    wait_for(lambda: all(map(is_gone, trusted.pids())))


@pytest.mark.exhaustive
def test_shared_url_file_is_deleted_after_a_missing_command(trusted: Shell, folder: Path) -> None:
    url = with_password(trusted.database.url)
    assert trusted.run("--", "no-such-command", url=url)[0] == 127
    assert list(folder.iterdir()) == []


def test_shared_url_file_exists_only_during_an_attempt(trusted: Shell, folder: Path) -> None:
    """Between the attempts there is no watchdog that could delete it."""
    options = ("--max-attempts", "2", "--backoff", "1h")
    script = 'ls "$TMPDIR"/*/password; exit 3'
    url = with_password(trusted.database.url)
    process = trusted.begin(*options, "--", "sh", "-c", script, url=url)
    wait_for(lambda: trusted.is_("retrying"))
    assert list(folder.glob("*/password")) == []
    process.terminate()
    assert trusted.end(process)[1].endswith(b"/password\n")
    assert list(folder.iterdir()) == []


def test_shared_url_password_of_the_query_is_removed(tmp_path: Path) -> None:
    url = "postgresql+psycopg://u:first@h/db?password=s%3Aecond&sslmode=require"
    with share_url(url, tmp_path) as (shared, file):
        assert file.read_text() == "*:*:*:*:s\\:econd\n"
        parsed = make_url(shared)
        assert parsed.password is None
        assert parsed.query == {"sslmode": "require", "passfile": str(file)}
    assert not file.exists()


@pytest.mark.parametrize(
    "url", ["postgresql://u:p@h:1/db?sslmode=require", "postgresql+psycopg://u:p@h:1/db"]
)
def test_shared_url_keeps_what_is_not_the_password(tmp_path: Path, url: str) -> None:
    with share_url(url, tmp_path) as (shared, _):
        parsed, given = make_url(shared), make_url(url)
        assert parsed.drivername == given.drivername
        assert parsed.difference_update_query(["passfile"]) == given._replace(password=None)


@pytest.mark.parametrize("url", ["postgresql://u@h/db?passfile=/x", "postgresql:///db?host=/run"])
def test_shared_url_without_password_is_unchanged(tmp_path: Path, url: str) -> None:
    with share_url(url, tmp_path) as (shared, file):
        assert (shared, file.exists()) == (url, False)


def test_shared_url_several_hosts_have_the_file(tmp_path: Path) -> None:
    with share_url("postgresql://u:p@h1:1,h2:2/db", tmp_path) as (shared, file):
        assert make_url(shared).query == {"host": ("h1:1", "h2:2"), "passfile": str(file)}


@pytest.mark.parametrize("password", ["line%0Abreak", "carriage%0Dreturn"])
def test_shared_url_password_with_line_break_is_withheld(
    tmp_path: Path, password: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with share_url(f"postgresql://u:{password}@h/db", tmp_path) as (shared, file):
        assert (shared, file.exists()) == ("postgresql://u@h/db", False)
    assert "the password of the database: it has a line break" in capfd.readouterr().err


def test_shared_url_file_that_cannot_be_written_is_deleted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with share_url("postgresql://u:p@h/db", tmp_path) as (shared, file):
            assert make_url(shared).password is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not file.exists()


def test_shared_url_file_is_utf_8_in_every_locale(
    trusted: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(name, value)
    url = with_password(trusted.database.url, "é€")
    code, out, err = trusted.run("--", "sh", "-c", 'cat "$TMPDIR"/*/password', url=url)
    assert (code, out.decode(), err) == (0, "*:*:*:*:é€\n", "")
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def asking() -> Iterator[str]:
    """The URL of a server that asks the role `asked` for its password."""
    with (
        postgres.server(own=True) as server,
        psycopg.connect(postgres.dsn(server.url), autocommit=True) as admin,
    ):
        migrate.upgrade(server.url)
        admin.execute("CREATE ROLE asked LOGIN SUPERUSER")
        row = admin.execute("SHOW hba_file").fetchone()
        assert row is not None
        file = Path(row[0])
        file.write_text(f"host all asked all scram-sha-256\n{file.read_text()}")
        admin.execute("SELECT pg_reload_conf()")
        yield server.url


def as_asked(url: str, password: str) -> str:
    with psycopg.connect(postgres.dsn(url), autocommit=True) as admin:
        statement = SQL("ALTER ROLE {} PASSWORD {}").format(Identifier("asked"), password)
        admin.execute(statement)
    return make_url(url).set(username="asked", password=password).render_as_string(False)


def test_shared_url_authenticates_with_every_password(asking: str, tmp_path: Path) -> None:
    for password in PASSWORDS:
        with share_url(as_asked(asking, password), tmp_path) as (shared, _):
            assert make_url(shared).password is None
            engine = create_sync_engine(shared)
            with engine.connect() as connection:
                assert connection.exec_driver_sql("SELECT 1").scalar() == 1
            engine.dispose()
            missing = make_url(shared).update_query_dict({"passfile": "/no/such/file"})
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(postgres.dsn(missing.render_as_string(False))).close()


def test_shared_url_authenticates_a_command(asking: str, tmp_path: Path, folder: Path) -> None:
    engine = create_sync_engine(asking)
    shell = Shell(Database("postgresql", asking, engine), tmp_path)
    inner = "execution-core run --type inner -- sh -c 'execution-core log inside && echo logged'"
    script = f"unset EXECUTION_CORE_SOCKET; execution-core log inside && {inner}"
    try:
        code, out, err = shell.run(
            "--type", "outer", "--", "sh", "-c", script, url=as_asked(asking, ODD)
        )
        assert (code, out, err) == (0, b"logged\n", "")
        manager = ExecutionManager(SqlExecutionStore(engine))
        (outer,), (found,) = manager.list(type="outer"), manager.list(type="inner")
        assert found.parent_id == outer.id
    finally:
        shell.close()
        engine.dispose()
    assert list(folder.iterdir()) == []


def test_abandoned_folder_is_deleted_by_the_next_run(
    trusted: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run and its watchdog may be killed together."""
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as name, socket.socket(socket.AF_UNIX) as living:
        monkeypatch.setenv("TMPDIR", name)
        dead, young, live = (Path(name, f"execution-core-run-{which}") for which in "dyl")
        for each in (dead, young, live):
            each.mkdir()
            (each / "password").write_text("s3cret")
            with socket.socket(socket.AF_UNIX) as closed:
                (living if each == live else closed).bind(str(each / "socket"))
            if each != young:
                os.utime(each, (0, 0))
        living.listen()
        assert trusted.run("--", "true")[0] == 0
        assert sorted(Path(name).iterdir()) == [live, young]


@pytest.mark.parametrize("user", ["app", "app:s3cret"])
def test_shared_url_has_no_password_of_a_key(user: str, folder: Path) -> None:
    shared, _ = _share_url(f"postgresql://{user}@host/db?sslpassword=hidden", str(folder))
    assert "hidden" not in shared
    assert "s3cret" not in shared
