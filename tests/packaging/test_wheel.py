"""The built wheel, used outside the checkout: unpacked, and installed in a new environment."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from execution_core import migrate as migrations

from ..conftest import open_database

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
def test_wheel_runs_unpacked_and_installed_with_and_without_extras(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """One test, because each process that runs tests would build and install a wheel of its own."""
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    assert_runs_unpacked(wheel, tmp_path / "unpacked", request)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--no-compile")
    run(*pip, wheel)
    assert_runs_without_extras(python, tmp_path)
    run(*pip, f"{wheel}[postgresql,asyncio]")
    for kind in ("sqlite", "postgresql"):
        with open_database(kind, request) as database:
            command = (python.with_name("execution-core"), "migrate", "--url", database.url)
            assert NEWEST in run(*command, cwd=tmp_path)
            script = (python, "-W", "error", "-c", SCRIPT, database.url, ROOT)
            assert run(*script, cwd=tmp_path) == "done\n"
    assert_contains_alembic_ini_and_py_typed(python, tmp_path)


def assert_runs_unpacked(wheel: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    migrate = "import sys; from execution_core.cli import main; sys.exit(main(sys.argv[1:]))"
    python = (sys.executable, "-W", "error", "-c")
    for kind in ("sqlite", "postgresql"):
        with open_database(kind, request) as database:
            command = (*python, migrate, "migrate", "--url", database.url)
            assert NEWEST in run(*command, path=folder, cwd=folder)
            script = (*python, SCRIPT, database.url, ROOT)
            assert run(*script, path=folder, cwd=folder) == "done\n"


def assert_runs_without_extras(python: Path, folder: Path) -> None:
    url = f"sqlite:///{folder}/bare.db"
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


def assert_contains_alembic_ini_and_py_typed(python: Path, folder: Path) -> None:
    package = run(python, "-c", "import execution_core as e; print(e.__path__[0])").strip()
    alembic = (python.with_name("alembic"), "-c", f"{package}/alembic.ini")
    run(*alembic, "upgrade", "head", cwd=folder)
    run(*alembic, "downgrade", "base", cwd=folder)
    assert (folder / "executions.db").exists()
    assert Path(package, "py.typed").exists()
