"""Database URLs that are refused."""

import pytest

from execution_core import InvalidValue
from execution_core.sql.driver.url import parse_url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "url is not a valid database URL, such as sqlite:///executions.db"),
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


def test_parse_url_accepts_an_escaped_at() -> None:
    assert parse_url("postgresql://u:sec%40ret@h/d").password == "sec@ret"
