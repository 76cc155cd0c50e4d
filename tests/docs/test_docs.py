"""The pages are correct: their examples run, their links and the tests they name exist."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from execution_core import ConcurrentUpdate, ExecutionManager, SqlExecutionStore, migrate

from ..conftest import Database

ROOT = Path(__file__).parents[2]
PAGES = {page.name: page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str = "python") -> list[str]:
    return [code for name, code in FENCED.findall(PAGES[page].read_text()) if name == language]


def prose(page: Path) -> str:
    return re.sub(r"`[^`\n]*`", "code", FENCED.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub creates them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_of_page_targets_exist(name: str) -> None:
    page = PAGES[name]
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_links_of_index_name_every_page() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(PAGES["index.md"]))
    assert {link for link in links if "/" not in link} == {*PAGES} - {"index.md", "README.md"}


def test_reliability_page_named_tests_exist() -> None:
    names = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGES["reliability.md"].read_text())
    assert len(names) > 40
    assert "test_" not in prose(PAGES["reliability.md"])  # so the pattern finds all of them
    for file, test in names:
        (path,) = (ROOT / "tests").rglob(file)
        source = path.read_text()
        assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file}::{test}"


def run(folder: Path, *code: str) -> str:
    script = folder / "page.py"
    script.write_text("\n".join(code))
    ran = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_embedding_page_examples_run(tmp_path: Path) -> None:
    assert run(tmp_path, *blocks("embedding.md")) == "409: IDEMPOTENCY_CONFLICT\n"
    engine = create_engine(f"sqlite:///{tmp_path}/service.db")
    with engine.connect() as connection:
        query = "SELECT type, status, attempts, result ->> 'shipped' FROM executions ORDER BY id"
        rows = [tuple(row) for row in connection.execute(text(query))]
        assert rows == [
            ("ship", "completed", 1, "lamp"),
            ("Invoice", "completed", 1, None),
            ("payment", "completed", 1, None),
            ("import-prices", "completed", 1, None),
            ("update-prices", "completed", 1, None),
            ("ship", "completed", 1, None),
        ]
        assert connection.scalar(text("SELECT sum(price) FROM prices")) == 50_501
    engine.dispose()


def test_embedding_page_tests_pass(pytester: pytest.Pytester) -> None:
    section = PAGES["embedding.md"].read_text().split("## Test your service\n")[1]
    conftest, tests = (code for name, code in FENCED.findall(section) if name == "python")
    pytester.makeconftest(conftest)
    pytester.makepyfile(tests)
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=2)


def test_migrations_page_examples_run(
    tmp_path: Path, empty_postgres: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EXECUTION_CORE_URL", raising=False)
    shutil.copytree(ROOT / "examples" / "host_alembic", tmp_path, dirs_exist_ok=True)
    postgres, shown = empty_postgres("docs"), "postgresql+psycopg://localhost/mine"
    env = (ROOT / "examples" / "host_async" / "env.py").read_text()  # only Alembic can run it
    code = "\n".join(each for each in blocks("migrations.md") if each not in env)
    assert shown in code
    run(tmp_path, code.replace(shown, postgres))
    assert migrate.check(f"sqlite:///{tmp_path}/mine.db")
    host = f"sqlite:///{tmp_path}/host.db"
    engine = create_engine(host)
    with engine.connect() as connection:
        versions = {*connection.scalars(text("SELECT version_num FROM alembic_version"))}
    assert len(versions) == 2
    assert versions > {"0001"}
    assert {"orders", "executions"} <= {*inspect(engine).get_table_names()}
    assert not migrate.check(host)  # as the page says: it reads another version table
    engine.dispose()
    engine = create_engine(postgres)
    assert inspect(engine).get_table_names() == []
    for schema in ("tenant_1", "jobs"):
        assert "executions" in inspect(engine).get_table_names(schema)
    engine.dispose()


def test_search_path_with_public_finds_the_tables_of_public(postgres_database: Database) -> None:
    """The page warns of it: the tables of *public* are taken for those of the tenant."""
    wide = {"options": "-c search_path=tenant_1,public"}
    engine = create_engine(postgres_database.url, connect_args=wide)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant_1"))
        migrate.upgrade(connection)
        assert inspect(connection).get_table_names("tenant_1") == []
        connection.rollback()
    engine.dispose()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_transaction_stricter_isolation_raises_concurrent_update(
    postgres_database: Database, level: str
) -> None:
    """The reliability page promises nothing here. A call outside the transaction succeeds."""
    engine = create_engine(postgres_database.url, isolation_level=level)
    manager = ExecutionManager(SqlExecutionStore(engine))
    id = manager.create("a").id
    with engine.connect() as connection:
        manager.within(connection).get(id)
        manager.start(id)
        with pytest.raises(ConcurrentUpdate) as caught:
            manager.within(connection).cancel(id)
    assert getattr(caught.value.__cause__, "orig").sqlstate == "40001"  # noqa: B009
    assert manager.cancel(id).status == "cancelled"
    engine.dispose()


def test_stores_page_examples_run(tmp_path: Path) -> None:
    run(tmp_path, *blocks("stores.md"))


def test_concepts_page_examples_run(tmp_path: Path) -> None:
    run(tmp_path, *blocks("concepts.md"))
    engine = create_engine(f"sqlite:///{tmp_path}/concepts.db")
    (query,) = (c for lang, c in FENCED.findall(PAGES["concepts.md"].read_text()) if lang == "sql")
    with engine.connect() as connection:
        id = connection.scalar(text("SELECT min(id) FROM executions"))
        rows = connection.execute(text(query), {"id": id}).all()
        assert [row.to_status for row in rows] == ["pending", "running", "completed"]
    engine.dispose()
