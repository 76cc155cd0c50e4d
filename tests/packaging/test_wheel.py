"""The built wheel, used outside the checkout.

`make test` runs it unpacked; `make test-all` installs it and its extras in new environments.
"""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from execution_core import migrate as migrations

from ..conftest import Database, open_database

ROOT = Path(__file__).parents[2]
NEWEST = migrations.revisions()[0]

SCRIPT = """
import asyncio, sys
import execution_core
from execution_core import connect, connect_async, migrate

url, repository = sys.argv[1:]
assert not execution_core.__file__.startswith(repository), execution_core.__file__
assert migrate.check(url)

with connect(url) as manager:
    job = manager.create("from-the-wheel", {"n": 1})
    manager.start(job.id)
    assert manager.complete(job.id, {"ok": True}).status == "completed"

async def main():
    async with connect_async(url) as manager:
        assert (await manager.get(job.id)).result == {"ok": True}

asyncio.run(main())
print("done")
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The bin folder of an environment with the wheel, its extras and their dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    return create_environment(folder, f"{wheel}[postgresql,asyncio]").parent


def create_environment(folder: Path, *packages: str) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", *packages)
    return python


def run(*command: object, path: Path | None = None, **options: object) -> str:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "EXECUTION_CORE_URL")
    }
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False,
        env=environment, **options,  # type: ignore[call-overload]
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.mark.exhaustive
def test_wheel_unpacked_migrates_and_runs(
    wheel: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    migrate = "import sys; from execution_core.cli import main; sys.exit(main(sys.argv[1:]))"
    for kind in ("sqlite", "postgresql"):
        with open_database(kind, request) as database:
            python = (sys.executable, "-W", "error", "-c")
            migrated = run(
                *python, migrate, "migrate", "--url", database.url, path=tmp_path, cwd=tmp_path
            )
            assert NEWEST in migrated
            ran = run(*python, SCRIPT, database.url, ROOT, path=tmp_path, cwd=tmp_path)
            assert ran == "done\n"


@pytest.mark.exhaustive
def test_wheel_migrates_and_runs_sync_and_async(
    installed: Path, database: Database, tmp_path: Path
) -> None:
    migrated = run(installed / "execution-core", "migrate", "--url", database.url, cwd=tmp_path)
    assert NEWEST in migrated
    ran = run(installed / "python", "-W", "error", "-c", SCRIPT, database.url, ROOT, cwd=tmp_path)
    assert ran == "done\n"


@pytest.mark.exhaustive
def test_wheel_without_extras_runs_on_sqlite_and_names_missing_extras(
    tmp_path: Path, wheel: Path
) -> None:
    python = create_environment(tmp_path / "venv", str(wheel))
    url = f"sqlite:///{tmp_path}/bare.db"
    assert "migrate" in run(python.with_name("execution-core"), "--help")
    run(python.with_name("execution-core"), "migrate", "--url", url)
    script = "import sys; from execution_core import connect; connect(sys.argv[1]).create('a')"
    run(python, "-c", script, url)
    for bad, extra in ((url, "asyncio"), ("postgresql://localhost/x", "postgresql")):
        missing = (
            "import sys; from execution_core import InvalidValue, connect_async\n"
            "try: connect_async(sys.argv[1])\n"
            "except InvalidValue as problem: print(problem)"
        )
        assert f"pip install 'execution-core[{extra}]'" in run(python, "-c", missing, bad)


@pytest.mark.exhaustive
def test_wheel_contains_alembic_ini_migrations_and_py_typed(
    installed: Path, tmp_path: Path
) -> None:
    folder = run(
        installed / "python", "-c", "import execution_core as e; print(e.__path__[0])"
    ).strip()
    run(installed / "alembic", "-c", f"{folder}/alembic.ini", "upgrade", "head", cwd=tmp_path)
    run(installed / "alembic", "-c", f"{folder}/alembic.ini", "downgrade", "base", cwd=tmp_path)
    assert (tmp_path / "executions.db").exists()
    assert Path(folder, "py.typed").exists()
