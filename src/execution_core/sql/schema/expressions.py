"""SQL expressions that differ between PostgreSQL and SQLite."""

from sqlalchemy import Boolean

from ...core.state_machine import LIVE
from .column_types import Expression, JsonText, Timestamp


class in_array(Expression):  # noqa: N801
    """`one_of(column, subquery)`: looked up one by one, whatever the planner expects of them.

    An array is made once: as a plain subquery PostgreSQL might choose, and lock, anew and more.
    """

    inherit_cache = True
    postgresql = "{0} = ANY (ARRAY {1})"
    sqlite = "{0} IN {1}"


class unindexed(Expression):  # noqa: N801
    """A column by which SQLite is not to look anything up: a `+` before it is its way to say so."""

    inherit_cache = True
    postgresql = "{0}"
    sqlite = "+{0}"


class database_now(Expression):  # noqa: N801
    """The time of the statement by the database's clock."""

    type = Timestamp()
    inherit_cache = True
    postgresql = "statement_timestamp()"
    sqlite = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"


class now_or_later_of(Expression):  # noqa: N801
    """The same, but not before a time: PostgreSQL reads its clock first, then waits for the row."""

    type = Timestamp()
    inherit_cache = True
    postgresql = "greatest(statement_timestamp(), {0})"
    sqlite = "max(strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), {0})"


class latest(Expression):  # noqa: N801
    """The later one of two times."""

    type = Timestamp()
    inherit_cache = True
    postgresql = "greatest({0}, {1})"
    sqlite = "max({0}, {1})"


class later(Expression):  # noqa: N801
    """`later(time, milliseconds)`; NULL without milliseconds. Negative ones go back."""

    type = Timestamp()
    inherit_cache = True
    postgresql = "{0} + {1} * interval '1 millisecond'"
    sqlite = "strftime('%Y-%m-%dT%H:%M:%fZ', {0}, ({1} / 1000.0) || ' seconds')"


_LIVE = ", ".join(f"'{status}'" for status in LIVE)


class has_live_links(Expression):  # noqa: N801
    """Whether anything under an execution is not over, or what names it is being changed.

    For PostgreSQL a function, which looks anew: a child may have been committed between the
    beginning of the statement and the lock on its parent. It also locks the children and replays,
    and says yes when it cannot at once. SQLite has one writer at a time.
    """

    type = Boolean()
    inherit_cache = True
    postgresql = "execution_core_in_use({0})"
    sqlite = (
        "EXISTS (SELECT 1 FROM executions AS child WHERE child.parent_id = {0}"  # noqa: S608 - of constants
        f" AND child.status IN ({_LIVE}))"
    )


class merged(Expression):  # noqa: N801
    """`merged(object, entry, entry with null)`: the JSON object with the entry's key set.

    SQLite's json_set drops a key that holds a quote and doubles one that holds a backslash. A merge
    patch with null removes any key exactly; what remains is text, to which the entry is appended.
    """

    type = JsonText()
    inherit_cache = True
    postgresql = "{0} || {1}"
    sqlite = (
        "CASE json_patch({0}, {2}) WHEN '{{}}' THEN {1} ELSE substr(json_patch({0}, {2}), 1,"
        " length(json_patch({0}, {2})) - 1) || ',' || substr({1}, 2) END"
    )
