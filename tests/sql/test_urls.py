"""Database URLs that are refused."""

import pytest
from sqlalchemy import make_url

from execution_core import InvalidValue, connect
from execution_core.sql.driver.url import parse_url

from ..conftest import Database
from ..support.postgres import free_port


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "url is not a valid database URL, such as sqlite:///executions.db: it lacks"),
        (
            "postgresql://u:5ecret/d",
            "url is not a valid database URL, such as sqlite:///executions.db: its port is not a",
        ),
        ("mysql://u:secret@h/d", "url must begin with sqlite:/// or postgresql"),
        ("sqlite://file.db", "url needs a third slash before the file"),
        ("postgresql://u:sec@ret@h/d", "url contains an unescaped @: write %40"),
    ],
)
def test_parse_url_refuses_without_showing_the_password(url: str, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_url(url)
    assert str(caught.value).startswith(message)
    assert "ret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u:p@h1:5432,h2:5433/d?connect_timeout=2", ("h1:5432", "h2:5433")),
        ("postgresql+psycopg://h1,h2/d", ("h1", "h2")),
        ("postgresql://u:a,b@h1/d", None),
        ("sqlite:///a,b.db", None),
    ],
)
def test_parse_url_accepts_several_hosts_as_libpq(url: str, hosts: tuple[str, ...] | None) -> None:
    parsed = parse_url(url)
    assert parsed.query.get("host") == hosts
    assert parsed.database in ("d", "a,b.db")


def test_connect_to_the_second_of_several_hosts(postgres_database: Database) -> None:
    server = make_url(postgres_database.url)
    hosts = f"127.0.0.1:{free_port()},{server.host}:{server.port}"
    url = f"postgresql://{server.username}@{hosts}/{server.database}?target_session_attrs=any"
    with connect(url) as manager:
        assert manager.create("work").status == "pending"


def test_parse_url_accepts_an_escaped_at() -> None:
    assert parse_url("postgresql://u:sec%40ret@h/d").password == "sec@ret"
