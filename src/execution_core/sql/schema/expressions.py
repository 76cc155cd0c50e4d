"""SQL expressions that differ between PostgreSQL and SQLite."""

from sqlalchemy import Boolean, Integer

from ...core.state_machine import LIVE
from .column_types import Expression, JsonText, Timestamp

SQLITE_TIME = "'%Y-%m-%d %H:%M:%f000'"
"""The format of times on SQLite, for its function strftime."""


class in_array(Expression):  # noqa: N801
    """`in_array(column, subquery)`: look up the ids one by one, whatever the planner estimates.

    PostgreSQL evaluates the array once. It might evaluate a plain subquery again and lock more.
    """

    inherit_cache = True
    postgresql = "{0} = ANY (ARRAY {1})"
    sqlite = "{0} IN {1}"


class in_few(Expression):  # noqa: N801
    """`in_array` also for a column that is NULL in most rows.

    After ANALYZE, SQLite expects to find most rows in the index, and would read the whole table.
    It has no type, for the reason of `likely`.
    """

    inherit_cache = True
    postgresql = in_array.postgresql
    sqlite = f"unlikely({in_array.sqlite})"


class in_pairs(Expression):  # noqa: N801
    """`in_pairs(id, number, pairs, condition)`: a JSON array has this pair, and a condition holds.

    The ids are looked up one by one, as by `in_array`: because of the CASE, no planner looks up the
    condition in an index instead.
    """

    type = Boolean()
    inherit_cache = True
    postgresql = (
        "{0} = ANY (ARRAY (SELECT CAST(pair ->> 0 AS uuid)"
        " FROM jsonb_array_elements(CAST({2} AS jsonb)) AS pair)) AND CASE WHEN {3} THEN ({0}, {1})"
        " IN (SELECT CAST(pair ->> 0 AS uuid), CAST(pair ->> 1 AS integer)"
        " FROM jsonb_array_elements(CAST({2} AS jsonb)) AS pair) ELSE false END"
    )
    sqlite = (
        "{0} IN (SELECT json_extract(value, '$[0]') FROM json_each({2})) AND CASE WHEN {3} THEN"
        " ({0}, {1}) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]')"
        " FROM json_each({2})) ELSE false END"
    )


class json_elements(Expression):  # noqa: N801
    """The elements of a JSON array that is given as text, as rows with a column `value`."""

    inherit_cache = True
    postgresql = "jsonb_array_elements(CAST({0} AS jsonb))"
    sqlite = "json_each({0})"


class by_code_point(Expression):  # noqa: N801
    """A text for ORDER BY: the order is the same for all callers, and that of Python."""

    inherit_cache = True
    postgresql = '{0} COLLATE "C"'
    sqlite = "{0}"


class checked_last(Expression):  # noqa: N801
    """A condition that no planner looks up in an index: other conditions find the rows."""

    type = Boolean()
    inherit_cache = True
    postgresql = "CASE WHEN {0} THEN true ELSE false END"
    sqlite = "CASE WHEN {0} THEN true ELSE false END"


class in_ids(Expression):  # noqa: N801
    """`in_ids(id, ids, condition)`: a JSON array has this id, and a condition holds.

    As `in_pairs`, with ids alone.
    """

    type = Boolean()
    inherit_cache = True
    postgresql = (
        "{0} = ANY (ARRAY (SELECT CAST(each AS uuid)"
        " FROM jsonb_array_elements_text(CAST({1} AS jsonb)) AS each))"
        " AND CASE WHEN {2} THEN true ELSE false END"
    )
    sqlite = "{0} IN (SELECT value FROM json_each({1})) AND CASE WHEN {2} THEN true ELSE false END"


class unindexed(Expression):  # noqa: N801
    """A column for which SQLite must not use an index: written with a `+` before it."""

    inherit_cache = True
    postgresql = "{0}"
    sqlite = "+{0}"


class likely(Expression):  # noqa: N801
    """A condition that SQLite does not look up in an index of its own column.

    It still matches the condition of a partial index, which `unindexed` would not. It has no type:
    as a Boolean it would be written `likely(...) = 1`, which no longer matches.
    """

    inherit_cache = True
    postgresql = "{0}"
    sqlite = "likely({0})"


class database_now(Expression):  # noqa: N801
    """The time of the statement by the database's clock."""

    type = Timestamp()
    inherit_cache = True
    postgresql = "statement_timestamp()"
    sqlite = f"strftime({SQLITE_TIME}, 'now')"


class latest(Expression):  # noqa: N801
    """The later one of two times."""

    type = Timestamp()
    inherit_cache = True
    postgresql = "greatest({0}, {1})"
    sqlite = "max({0}, {1})"


class larger(Expression):  # noqa: N801
    """The larger one of two integers."""

    type = Integer()
    inherit_cache = True
    postgresql = "greatest({0}, {1})"
    sqlite = "max({0}, {1})"


class smaller(Expression):  # noqa: N801
    """The smaller one of two integers."""

    type = Integer()
    inherit_cache = True
    postgresql = "least({0}, {1})"
    sqlite = "min({0}, {1})"


class later(Expression):  # noqa: N801
    """`later(time, milliseconds)`; NULL without milliseconds. Negative ones mean earlier."""

    type = Timestamp()
    inherit_cache = True
    postgresql = "{0} + {1} * interval '1 millisecond'"
    sqlite = f"strftime({SQLITE_TIME}, {{0}}, ({{1}} / 1000.0) || ' seconds')"


_LIVE = ", ".join(f"'{status}'" for status in LIVE)


class has_live_links(Expression):  # noqa: N801
    """Whether a descendant of the execution is live, or a child or replay of it is being changed.

    PostgreSQL calls a function, whose statements see what was committed after the outer statement
    began. It also locks the children and replays, and answers true if it cannot do so at once.
    SQLite has one writer at a time.
    """

    type = Boolean()
    inherit_cache = True
    postgresql = "{in_use}({0})"
    sqlite = (
        "EXISTS (WITH RECURSIVE below(id, status) AS ("  # noqa: S608 - of constants
        "SELECT child.id, child.status FROM executions AS child WHERE child.parent_id = {0}"
        " UNION SELECT child.id, child.status FROM below JOIN executions AS child"
        f" ON child.parent_id = below.id) SELECT 1 FROM below WHERE status IN ({_LIVE}))"
    )


class merged(Expression):  # noqa: N801
    """`merged(object, member, member with null)`: the JSON object with one key set.

    SQLite's json_set drops a key that holds a quote and duplicates one that holds a backslash. A
    merge patch with null removes any key exactly; the new member is then appended as text.
    """

    type = JsonText()
    inherit_cache = True
    postgresql = "{0} || {1}"
    sqlite = (
        "CASE json_patch({0}, {2}) WHEN '{{}}' THEN {1} ELSE substr(json_patch({0}, {2}), 1,"
        " length(json_patch({0}, {2})) - 1) || ',' || substr({1}, 2) END"
    )
