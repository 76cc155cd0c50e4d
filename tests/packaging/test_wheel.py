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
    """One test: several could run in several processes, and each would build its own wheel."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    migrate = "import sys; from execution_core.cli import main; sys.exit(main(sys.argv[1:]))"
    python = (sys.executable, "-W", "error")
    assert_migrates_and_runs(request, python, (*python, "-c", migrate), tmp_path / "unpacked")
    assert_plugin_runs(tmp_path / "unpacked", tmp_path)
    venv.create(tmp_path / "venv", with_pip=True)
    installed = tmp_path / "venv" / "bin" / "python"
    pip = (installed, "-m", "pip", "install", "--quiet", "--no-compile")
    run(*pip, wheel)
    assert_runs_without_extras(installed, tmp_path)
    run(*pip, f"{wheel}[postgresql,asyncio]")
    command = installed.with_name("execution-core")
    assert_migrates_and_runs(request, (installed, "-W", "error"), (command,), tmp_path)
    assert_contains_alembic_ini_and_py_typed(installed, tmp_path)


def assert_migrates_and_runs(
    request: pytest.FixtureRequest,
    python: tuple[object, ...],
    command: tuple[object, ...],
    folder: Path,
) -> None:
    """Use both databases in a folder, which Python also searches for modules."""
    for kind in ("sqlite", "postgresql"):
        with open_database(kind, request) as database:
            migrated = run(*command, "migrate", "--url", database.url, path=folder, cwd=folder)
            assert NEWEST in migrated
            script = (*python, "-c", SCRIPT, database.url, ROOT)
            assert run(*script, path=folder, cwd=folder) == "done\n"


def assert_plugin_runs(package: Path, folder: Path) -> None:
    """Use the fixtures in a run of pytest that takes the package from a folder."""
    tests = folder / "test_service.py"
    tests.write_text(
        "import execution_core\n"
        "def test_manager(execution_manager, async_execution_manager):\n"
        f"    assert execution_core.__file__.startswith({str(package)!r})\n"
        "    assert execution_manager.create('a').status == 'pending'\n"
    )
    plugin = ("-p", "execution_core.testing.plugin", "-p", "no:cacheprovider")
    ran = run(
        sys.executable, "-m", "pytest", "-W", "error", *plugin, tests, path=package, cwd=folder
    )
    assert "1 passed" in ran


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
