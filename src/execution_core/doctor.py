"""Whether a live database is as it should be: `doctor.examine(engine)`. It changes nothing.

What should be there is what the migrations make: in an empty SQLite database in memory, or as they
print it for PostgreSQL. So triggers, functions, views and conditions are compared as well.
"""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast
from urllib.parse import quote, unquote

from alembic import command
from sqlalchemy import (
    URL,
    BigInteger,
    BinaryExpression,
    ColumnElement,
    Connection,
    Engine,
    NullPool,
    and_,
    create_engine,
    event,
    func,
    inspect,
    literal,
    or_,
    select,
    text,
    union,
)
from sqlalchemy.exc import DBAPIError

from . import migrate, values
from .errors import InvalidValue
from .migrate import _alone, _config, _revisions
from .sql.engines import begin_sqlite, create_sync_engine, database_url, single_statements
from .sql.indexes import metadata
from .sql.schema import execution_history, executions
from .sql.statements import _allowed, _met
from .sql.types import database_now, later, one_of
from .transitions import CLAIM, LIVE, SWEEP, Move

Level = Literal["ok", "warning", "problem"]

NEWEST: Final = 1_000
"""Of so many executions the history is read, besides those that are live."""
EXAMPLES: Final = 5
"""Of what is wrong with one thing, so much is named."""
MANY_ROWS: Final = 10_000
"""A table of fewer rows is read fast, whatever the planner knows of it."""
_MILLISECOND: Final = timedelta(milliseconds=1)

_ANEW: Final = "make it as execution-core migrate --sql prints it"
_CHECKS: Final[dict[str, tuple[Level, str]]] = {
    # How bad it is when it is not as it should be, and what to do then.
    "migrated": ("problem", "Run execution-core migrate"),
    "sqlite_version": ("problem", "Use SQLite 3.38 or newer: the views need it"),
    "journal_mode": ("warning", "Let connect() or configure_sqlite turn to WAL: readers wait less"),
    "writable": ("warning", "Give workers the right to write; for WAL, in the folder too"),
    "connections": ("warning", "Give the engine to configure_sqlite before it connects"),
    "synchronous": ("warning", "Let each connection execute PRAGMA synchronous = FULL"),
    "server_version": ("warning", "Use PostgreSQL 15 or newer: older ones are not tested"),
    "transaction_isolation": ("warning", "Let the engine, or its role, say READ COMMITTED"),
    "synchronous_commit": ("warning", "Set it to on for this role, unless that is meant"),
    "transaction_read_only": (
        "warning",
        "Let workers connect to the primary, in a role that writes",
    ),
    "session_replication_role": ("problem", "ALTER ROLE … RESET session_replication_role"),
    "fsync": ("warning", "Set fsync = on in the server's configuration"),
    "full_page_writes": ("warning", "Set full_page_writes = on in the server's configuration"),
    "tables": ("problem", f"Alter it, or {_ANEW}, and copy the rows"),
    "constraints": ("problem", f"VALIDATE CONSTRAINT what is not valid; else drop it, and {_ANEW}"),
    "indexes": ("problem", f"REINDEX what is invalid; else drop it, and {_ANEW}"),
    "functions": ("problem", f"CREATE OR REPLACE: {_ANEW}; look at the history"),
    "triggers": ("problem", f"ENABLE TRIGGER what is disabled; else drop it, and {_ANEW}"),
    "views": ("problem", f"Drop it, and {_ANEW}"),
    "idle_transactions": ("warning", "pg_terminate_backend(pid) ends it; see what left it open"),
    "statistics": ("warning", "VACUUM ANALYZE, and see that autovacuum gets to these tables"),
    "overdue": ("problem", "Let execution-core sweep, or manager.sweep(), run regularly"),
    "stalled": ("problem", "Let execution-core sweep --stalled-after run regularly"),
    "unclaimed": ("warning", "See that workers run, and claim this type"),
    "history": (
        "problem",
        "Triggers were off, or somebody edited rows: only a hand can mend it, from what it knows",
    ),
}


@dataclass(frozen=True)
class Finding:
    """What one check found: `finding.level == "problem"`."""

    check: str
    """Its short name, the same in every version."""
    level: Level
    says: str
    advice: str | None = None
    """What to do, unless all is well."""


Checks = dict[str, Callable[[], Finding]]


def examine(
    target: Engine | URL | str,
    *,
    stalled_after: timedelta = timedelta(hours=1),
    whole: bool = False,
) -> list[Finding]:
    """Look at a database and say what is wrong, and what to do: `doctor.examine(engine)`.

    Each check has one finding. What the role may not read is a warning; what needs a schema that
    is not there is left out.

    Args:
        target: the host's own Engine, whose settings are checked as well; or a URL.
        stalled_after: how long a running execution may be silent, a waiting one unclaimed after
            it is due, a transaction idle.
        whole: read the history of every execution, not only of the live and the newest ones.

    Raises:
        InvalidValue: it is neither, or names a file that is not there or cannot be read.
    """
    patience = values.duration("stalled_after", stalled_after) // _MILLISECOND
    with _engine(target) as engine:
        sqlite = engine.dialect.name == "sqlite"
        settings = (
            _sqlite_settings(engine, given=engine is target)
            if sqlite
            else _postgresql_settings(engine)
        )
        with _reading(engine) as connection:
            look = partial(_guarded, connection)
            findings = [look("migrated", partial(_migrated, connection)), *settings]
            if findings[0].level == "problem":
                return findings
            checks: Checks = {
                **(_sqlite_schema(connection) if sqlite else _postgresql_schema(connection)),
                **({} if sqlite else _postgresql_activity(connection, patience)),
                **_contents(connection, patience, whole=whole),
            }
            return [*findings, *(look(check, how) for check, how in checks.items())]


def _finding(check: str, wrong: list[str], fine: str) -> Finding:
    """Return what a check found of one or several things, of which some may be wrong."""
    if not wrong:
        return Finding(check, "ok", fine)
    level, advice = _CHECKS[check]
    more = len(wrong) - EXAMPLES
    says = "; ".join(wrong[:EXAMPLES]) + (f"; and {more} more" if more > 0 else "")
    return Finding(check, level, says, advice)


# --- the database ------------------------------------------------------------------------------


@contextmanager
def _engine(target: Engine | URL | str) -> Iterator[Engine]:
    if isinstance(target, Engine):
        single_statements(target)  # which refuses what is over another database
        yield target
        return
    if not isinstance(target, str | URL):
        raise InvalidValue("target", f"must be an Engine or a URL, not {type(target).__name__}")
    url = database_url(target)
    sqlite = url.get_backend_name() == "sqlite"
    # An engine of ours would switch a file to WAL.
    engine = (
        create_engine(_as_it_is(url), poolclass=NullPool) if sqlite else create_sync_engine(url)
    )
    try:
        yield engine
    except DBAPIError as error:
        if not sqlite:
            raise
        raise InvalidValue(
            "target",
            f"cannot be read: {error.orig}. See to the rights on the file, and on its folder, where"
            " SQLite keeps what it needs while it reads",
        ) from error
    finally:
        engine.dispose()


def _as_it_is(url: URL) -> URL:
    """Return the URL that leaves a file as it is, and makes none."""
    name = url.database or ":memory:"
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:"))
    if name == ":memory:":
        raise InvalidValue("target", "is in memory, and gone at once: pass an Engine")
    if not Path(name).is_file():
        raise InvalidValue(
            "target", f"is a file that does not exist, {name}: execution-core migrate makes it"
        )
    # Who may not write leaves behind the files that WAL needs; who may removes them, and first
    # moves into the database what a crash has left there.
    query = {"mode": "ro" if Path(f"{name}-wal").exists() else "rw", "uri": "true"}
    return URL.create("sqlite+pysqlite", database=f"file:{quote(name)}", query=query)


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    """Connect only to read; in PostgreSQL rather with an error than with a part of the rows."""
    if engine.dialect.name == "sqlite":
        with single_statements(engine).connect() as connection:
            yield connection
        return
    only = engine.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=True)
    with only.connect() as connection:
        # And rather than a wait behind a migration.
        for setting in ("row_security = off", "lock_timeout = '500ms'"):
            connection.execute(text(f"SET LOCAL {setting}"))
        yield connection


def _guarded(connection: Connection, check: str, look: Callable[[], Finding]) -> Finding:
    """Make a warning of what the database refuses."""
    sqlite = connection.dialect.name == "sqlite"
    try:
        with nullcontext() if sqlite else connection.begin_nested():
            return look()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        advice = "Mend what else was found, then look again"
        if getattr(error.orig, "sqlstate", None) == "42501":
            advice = "GRANT SELECT on it to this role, or run doctor as the role that migrates"
        says = f"could not be examined: {str(error.orig).splitlines()[0]}"
        return Finding(check, "warning", says, advice)


def _migrated(connection: Connection) -> Finding:
    at, known = migrate.current(connection), _revisions()
    if at in known:
        behind = [] if at == known[0] else [f"at {at}, before {known[0]}"]
        return _finding("migrated", behind, f"at {at}")
    if at is not None:
        says = f"at {at}, which a newer version of execution-core made"
        return Finding("migrated", "problem", says, "Install that version here as well")
    if not inspect(connection).has_table(executions.name):
        advice = "Run execution-core migrate; or see to search_path, and USAGE on the schema"
        return Finding("migrated", "problem", "no table executions is visible", advice)
    says = f"no {migrate.VERSION_TABLE} tells the version; it is compared with {known[0]}"
    advice = "Nothing, where your own Alembic lists this library's versions beside its own"
    return Finding("migrated", "warning", says, advice)


# --- the schema --------------------------------------------------------------------------------

Definitions = dict[tuple[str, str], str]
"""By kind and name: SQL, comparable once it is `_plain`."""


class Schema(NamedTuple):
    """What should be there, what is there, and what is the matter with it otherwise."""

    expected: Definitions
    found: Definitions
    states: Mapping[tuple[str, str], str]


def _compared(kind: str, schema: Schema) -> Finding:
    expected, found, states = schema
    names = [name for of, name in expected if of == kind]
    wrong = []
    for key in ((kind, name) for name in names):
        if key not in found:
            wrong.append(f"{key[1]} is missing")
        elif states.get(key):
            wrong.append(f"{key[1]} {states[key]}")
        elif _plain(found[key]) != _plain(expected[key]):
            wrong.append(f"{key[1]} is not as the migrations make it")
    return _finding(kind, wrong, f"all {len(names)} are in place")


def _plain(sql: str) -> str:
    """Leave out what may be spelt in two ways, by PostgreSQL above all."""
    plain = re.sub(r'[\s"]+', "", sql).lower().replace("usingbtree", "").replace("::text", "")
    return re.sub(r"=any\(array\[(.*?)\]\)", r"in(\1)", plain)


def _parts(table: str, inside: str) -> Definitions:
    """Return a table, its columns and constraints, from what stands inside of CREATE TABLE."""
    items, depth = [""], 0
    for character in inside:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    parts = {("tables", table): ""}
    for item in items:
        column, *constraints = re.split(r"\bCONSTRAINT\s", item)
        name = "".join(column.split(maxsplit=1)[:1]).strip('"')
        if name:
            parts["tables", f"{table}.{name}"] = column
        for constraint in constraints:
            called, rule = constraint.split(maxsplit=1)
            of_column = f"FOREIGN KEY ({name}) " if rule.startswith("REFERENCES") else ""
            parts["constraints", called] = of_column + rule
    return parts


def _sqlite_schema(connection: Connection) -> Checks:
    """Compare with a database that is made here and now."""
    head = create_engine("sqlite://")
    try:
        migrate.upgrade(head)
        with head.connect() as made:
            schema = Schema(_sqlite_definitions(made), _sqlite_definitions(connection), {})
    finally:
        head.dispose()
    kinds = ("tables", "constraints", "indexes", "triggers", "views")
    return {kind: partial(_compared, kind, schema) for kind in kinds}


def _sqlite_definitions(connection: Connection) -> Definitions:
    definitions: Definitions = {}
    kinds = {"index": "indexes", "trigger": "triggers", "view": "views"}
    made = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    for kind, name, sql in connection.execute(text(made)):
        if kind in kinds:
            definitions[kinds[kind], name] = sql
        elif name in metadata.tables:
            definitions |= _parts(name, sql[sql.index("(") + 1 : sql.rindex(")")])
    return definitions


def _postgresql_schema(connection: Connection) -> Checks:
    """Compare with what the migrations print; the planner spells conditions and views alike."""

    @cache
    def schema() -> Schema:
        expected = _postgresql_expected(connection)
        names = [name for kind, name in expected if kind in ("tables", "views", "functions")]
        found, states = {}, {}
        for kind, name, definition, state in connection.execute(text(_CATALOG), {"names": names}):
            found[kind, name], states[kind, name] = definition, state
        return Schema(expected, found, states)

    def compared(kind: str) -> Finding:
        if kind == "constraints":
            _plan_checks(connection, schema())
        elif kind == "views":
            _plan_views(connection, schema())
        return _compared(kind, schema())

    kinds = ("tables", "constraints", "indexes", "functions", "triggers", "views")
    return {kind: partial(compared, kind) for kind in kinds}


_TABLE: Final = re.compile(
    r"^(?:CREATE TABLE (\w+) \(\n(.*?)\n\)|ALTER TABLE (\w+) ADD COLUMN (.*?));\n\n", re.M | re.S
)
_OTHER: Final = re.compile(
    r"^(CREATE|DROP) (?:OR REPLACE )?(INDEX|FUNCTION|TRIGGER|VIEW) (\w+)(.*?);\n\n", re.M | re.S
)


def _postgresql_expected(connection: Connection) -> Definitions:
    expected: Definitions = {}
    for table in metadata.tables.values():
        expected["tables", table.name] = ""
        for column in table.columns:
            definition = column.type.compile(connection.dialect)
            definition += "" if column.nullable else " NOT NULL"
            definition += "" if column.server_default is None else " DEFAULT"
            expected["tables", f"{table.name}.{column.name}"] = definition
    printed = _printed()
    for name, inside, changed, added in _TABLE.findall(printed):
        if (name or changed) in metadata.tables:
            parts = _parts(name or changed, inside or added)
            expected |= {key: rule for key, rule in parts.items() if key[0] == "constraints"}
    for verb, what, name, rest in _OTHER.findall(printed):
        key = ("indexes" if what == "INDEX" else f"{what.lower()}s", name)
        if verb == "DROP":
            del expected[key]
        elif what == "FUNCTION":
            expected[key] = rest.split("$$")[1]
        elif what == "VIEW":
            expected[key] = f"({rest.partition(' AS')[2]})"
        else:
            expected[key] = f"CREATE {what} {name}{rest}"
    return expected


def _printed() -> str:
    with _alone():
        config, printed = _config(), io.StringIO()
        config.output_buffer, config.attributes["url"] = printed, "postgresql://"
        command.upgrade(config, "head", sql=True)
    return printed.getvalue()


_CATALOG: Final = """
WITH names AS (SELECT unnest(CAST(:names AS text[])) AS name),
ours AS (SELECT * FROM pg_class WHERE oid IN (SELECT to_regclass(name) FROM names))
SELECT 'tables' AS kind, relname::text AS name, ''::text AS definition,
       CASE relpersistence WHEN 'p' THEN '' ELSE 'is unlogged: a crash empties it' END AS state
  FROM ours WHERE relkind IN ('r', 'p')
UNION ALL
SELECT 'views', relname, relname, '' FROM ours WHERE relkind = 'v'
UNION ALL
SELECT 'tables', relname || '.' || attname,
       format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
       || CASE WHEN atthasdef THEN ' DEFAULT' ELSE '' END, ''
  FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraints', conname,
       coalesce('CHECK (' || pg_get_expr(conbin, conrelid) || ')', pg_get_constraintdef(c.oid)),
       CASE WHEN NOT convalidated THEN 'is not valid'
            WHEN EXISTS (SELECT FROM pg_trigger AS t
                          WHERE tgconstraint = c.oid AND tgenabled IN ('D', 'R'))
            THEN 'is not enforced: its triggers are disabled' ELSE '' END
  FROM ours JOIN pg_constraint AS c ON conrelid = ours.oid
UNION ALL
SELECT 'indexes', i.relname, pg_get_indexdef(indexrelid, 0, true),
       CASE WHEN indisvalid THEN '' ELSE 'is invalid' END
  FROM ours JOIN pg_index ON indrelid = ours.oid JOIN pg_class AS i ON i.oid = indexrelid
UNION ALL
SELECT 'triggers', tgname, pg_get_triggerdef(t.oid, true),
       CASE tgenabled WHEN 'D' THEN 'is disabled' WHEN 'R' THEN 'fires on replicas alone'
            ELSE '' END
  FROM ours JOIN pg_trigger AS t ON tgrelid = ours.oid
UNION ALL
SELECT 'functions', proname, prosrc,
       CASE WHEN proconfig IS NULL THEN 'has lost its search_path' ELSE '' END
  FROM pg_proc JOIN names ON proname = name
 WHERE pronamespace IN (SELECT relnamespace FROM ours)
"""


def _plan_checks(connection: Connection, schema: Schema) -> None:
    for table in metadata.tables:
        keys = [key for key in schema.expected if key[1].startswith(f"ck_{table}_")]
        keys = [key for key in keys if key in schema.found]
        for definitions in (schema.expected, schema.found) if keys else ():
            conditions = ", ".join(definitions[key].removeprefix("CHECK") for key in keys)
            plan = _planned(connection, f"SELECT {conditions} FROM {table} WHERE false")  # noqa: S608
            definitions.update(zip(keys, plan["Output"], strict=True))


def _plan_views(connection: Connection, schema: Schema) -> None:
    for key in [key for key in schema.expected if key[0] == "views" and key in schema.found]:
        for definitions in (schema.expected, schema.found):
            everything = f"SELECT * FROM {definitions[key]} AS it"  # noqa: S608
            columns = connection.execute(text(f"{everything} LIMIT 0")).keys()
            definitions[key] = f"{list(columns)} {_planned(connection, everything)}"


def _planned(connection: Connection, query: str) -> dict[str, Any]:
    """Return how PostgreSQL reads a query, in its own spelling. The query is not run."""
    explain = text(f"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) {query}")
    return cast("dict[str, Any]", connection.execute(explain).scalar_one()[0]["Plan"])


# --- settings ----------------------------------------------------------------------------------


def _sqlite_settings(engine: Engine, *, given: bool) -> list[Finding]:
    with single_statements(engine).connect() as connection:
        version = connection.execute(text("SELECT sqlite_version()")).scalar_one()
        file = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
        mode, foreign_keys, busy_timeout, synchronous = (
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        )
    old = tuple(map(int, version.split("."))) < (3, 38)
    findings = [_finding("sqlite_version", [version] if old else [], version)]
    if file:
        shut = [f"{p} is not" for p in (Path(file), Path(file).parent) if not os.access(p, os.W_OK)]
        findings += [
            _finding("journal_mode", [] if mode == "wal" else [mode], mode),
            _finding("writable", shut, "the file and its folder, by this user"),
        ]
    if not given:
        says = "known of your own Engine alone; connect() and configure_sqlite make sound ones"
        return [*findings, Finding("connections", "ok", says)]
    wrong = {
        "foreign keys are off": not foreign_keys,
        "a writer does not wait for another": not busy_timeout,
        "who reads and then writes cannot wait": not event.contains(engine, "begin", begin_sqlite),
    }
    return [
        *findings,
        _finding("connections", [says for says, so in wrong.items() if so], "sound"),
        _finding(
            "synchronous",
            ["a loss of power may take the last moves"] if synchronous < 2 else [],
            "what is acknowledged survives a loss of power",
        ),
    ]


_SETTINGS: Final = {
    # The values that are sound, and what it means when it has another.
    "transaction_isolation": (("read committed",), "calls that meet raise where they would wait"),
    "synchronous_commit": (
        ("on", "remote_apply"),
        "the last moves may be lost: off, in a crash; else, when a standby takes over",
    ),
    "transaction_read_only": (("off",), "a standby, or default_transaction_read_only is on"),
    "session_replication_role": (("origin", "local"), "no trigger fires, so no history is written"),
    "fsync": (("on",), "a crash of the machine may destroy the database"),
    "full_page_writes": (("on",), "a crash of the machine may destroy pages"),
}


def _postgresql_settings(engine: Engine) -> list[Finding]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT name, setting FROM pg_settings"))
        found = {row.name: row.setting for row in rows}
    version = found["server_version"]
    old = int(found["server_version_num"]) < 150_000
    findings = [_finding("server_version", [version] if old else [], version)]
    for name, (sound, means) in _SETTINGS.items():
        wrong = [] if found[name] in sound else [f"{found[name]}: {means}"]
        findings.append(_finding(name, wrong, found[name]))
    return findings


_IDLE: Final = """
SELECT DISTINCT activity.pid, usename, application_name, state_change
  FROM pg_stat_activity AS activity JOIN pg_locks AS held USING (pid)
 WHERE state LIKE 'idle in transaction%'
   AND state_change < clock_timestamp() - :patience * interval '1 millisecond'
   AND relation IN (SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) AS name)
   AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
 ORDER BY state_change
"""
_STATISTICS: Final = """
SELECT relname, coalesce(last_analyze, last_autoanalyze) IS NULL, n_live_tup, n_dead_tup
  FROM pg_stat_user_tables
 WHERE relid IN (SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) AS name)
   AND (coalesce(last_analyze, last_autoanalyze) IS NULL AND n_live_tup >= :many
        OR n_dead_tup >= :many AND n_dead_tup > n_live_tup)
"""


def _postgresql_activity(connection: Connection, patience: int) -> Checks:
    tables = list(metadata.tables)

    def idle() -> Finding:
        rows = connection.execute(text(_IDLE), {"tables": tables, "patience": patience})
        wrong = [
            f"{pid} ({role}, {application or 'unnamed'}) since {_moment(since)}"
            for pid, role, application, since in rows
        ]
        return _finding("idle_transactions", wrong, "none holds these tables for long")

    def statistics() -> Finding:
        rows = connection.execute(text(_STATISTICS), {"tables": tables, "many": MANY_ROWS})
        wrong = [
            f"{table}, {live} rows, {'never analysed' if unknown else f'{dead} dead ones beside'}"
            for table, unknown, live, dead in rows
        ]
        return _finding("statistics", wrong, "what the planner needs is known")

    return {"idle_transactions": idle, "statistics": statistics}


# --- executions and their history --------------------------------------------------------------


def _contents(connection: Connection, patience: int, *, whole: bool) -> Checks:
    (overdue, stalled), (due,) = SWEEP.moves, CLAIM.moves
    now = database_now()
    before = later(now, literal(-patience, BigInteger))
    late = partial(_late, connection, patience)
    return {
        "overdue": lambda: late("overdue", overdue, now),
        "stalled": lambda: late("stalled", stalled, now),
        "unclaimed": lambda: late("unclaimed", due, before),
        "history": lambda: _history(connection, whole=whole),
    }


def _late(
    connection: Connection, patience: int, check: str, move: Move, now: ColumnElement[datetime]
) -> Finding:
    """Find what a sweep or a claim would find: by its condition, whose left side is since when."""
    (met,) = _met(move.when, now)
    since = cast("BinaryExpression[datetime]", met).left
    columns = executions.c
    query = (
        select(columns.id, columns.type, columns.worker, since, func.count().over())
        .where(_allowed(move, now))
        .order_by(since)
        .limit(1)
    )
    wrong = [
        f"{count}, the first since {_moment(began)}: {id} ({type}{f', {worker}' if worker else ''})"
        for id, type, worker, began, count in connection.execute(
            query, {"stalled_after_ms": patience}
        )
    ]
    return _finding(check, wrong, "none")


def _moment(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _history(connection: Connection, *, whole: bool) -> Finding:
    e, h = executions.c, execution_history.c
    in_order: Any = {"partition_by": e.id, "order_by": h.seq}
    moves = select(
        *(e.id, e.status, e.attempts, h.seq, h.from_status, h.to_status, h.attempt),
        func.row_number().over(**in_order).label("place"),
        func.lag(h.to_status).over(**in_order).label("before"),
        func.lead(h.seq).over(**in_order).label("next"),
    ).join_from(executions, execution_history, isouter=True)
    if not whole:
        live = select(e.id).where(e.status.in_(LIVE))
        newest = select(select(e.id).order_by(e.id.desc()).limit(NEWEST).subquery().c.id)
        moves = moves.where(one_of(e.id, union(live, newest).scalar_subquery()))
    move = moves.subquery().c
    ends_elsewhere = or_(move.to_status != move.status, move.attempt != move.attempts)
    gaps = or_(
        move.seq.is_(None),
        move.seq != move.place,
        func.coalesce(move.from_status, "") != func.coalesce(move.before, ""),
        and_(move.next.is_(None), ends_elsewhere),
    )
    ids = select(move.id, func.count().over()).where(gaps).group_by(move.id).order_by(move.id)
    found = connection.execute(ids.limit(1))
    wrong = [
        f"{count} with a gap, or not as they moved last, the first: {id}" for id, count in found
    ]
    seen = "every execution" if whole else f"the live and the newest {NEWEST:,} executions"
    return _finding("history", wrong, f"without a gap, of {seen}")
