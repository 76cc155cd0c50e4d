"""Run a part of the tests with the lowest and the newest versions that pyproject.toml allows.

Environments are created in `.versions`, for each Python that is installed, also with pyenv. The
newest versions run with the PostgreSQL of the wheel, which is newer than Debian's.
"""

import os
import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = "asyncio,asyncpg,cli,postgresql,test"
TESTS = (
    "tests/tracking/test_attempts.py",
    "tests/tracking/test_claims.py",
    "tests/tracking/test_heartbeat_calls.py",
    "tests/tracking/test_within.py",
    "tests/sql/test_asyncpg.py",
    "tests/sql/test_executor.py",
    "tests/sql/test_migrations.py",
    "tests/sql/test_tables.py",
    "tests/cli/test_commands.py",
)
"""What uses SQLAlchemy, the drivers, Alembic, pydantic and rich."""


def uv(*command: str, check: bool = True) -> str:
    """Run uv with the interpreters of pyenv; return its output."""
    pyenv = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    folders = [str(each) for each in Path(pyenv).glob("versions/3.*/bin")]
    path = os.pathsep.join([os.environ["PATH"], *folders])
    environment = {**os.environ, "PATH": path, "UV_PYTHON_DOWNLOADS": "never"}
    process = subprocess.run(
        [find_uv_bin(), *command], cwd=ROOT, env=environment, check=check, stdout=subprocess.PIPE
    )
    return process.stdout.decode().strip()


def run_tests(python: str, resolution: str, arguments: list[str], **variables: str) -> None:
    """Create an environment, say what it contains, and run the tests in it with these variables.

    Raises:
        subprocess.CalledProcessError: a version cannot be installed, or a test failed.
    """
    folder = ROOT / ".versions" / f"{python}-{resolution}"
    interpreter = folder / "bin" / "python"
    uv("venv", "--quiet", "--allow-existing", "--python", python, str(folder))
    install = ("pip", "install", "--quiet", "--python", str(interpreter))
    uv(*install, "--resolution", resolution, "--editable", f".[{EXTRAS}]")
    packages = uv("pip", "freeze", "--quiet", "--python", str(interpreter))
    print(f"Python {python}, {resolution}: {', '.join(packages.splitlines())}", flush=True)
    tests = [str(interpreter), "-m", "pytest", "-q", "-n", "3", "--dist", "worksteal"]
    environment = {**os.environ, **variables}
    subprocess.run([*tests, *(arguments or TESTS)], cwd=ROOT, env=environment, check=True)


def main() -> None:
    """Run the tests with each installed Python, with the newest versions on the newest one."""
    found = [each for each in PYTHONS if uv("python", "find", each, check=False)]
    for each in PYTHONS:
        if each not in found:
            print(f"NOT TESTED: Python {each} is not installed")
    for each in found[:-1] or found:
        run_tests(each, "lowest-direct", sys.argv[1:])
    run_tests(found[-1], "highest", sys.argv[1:], TEST_POSTGRES="wheel")


if __name__ == "__main__":
    main()
