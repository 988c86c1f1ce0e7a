"""The connection to SQLite or Postgres: pragmas, transactions, and driver errors translated once."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import ArgumentError as UrlError
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from db.errors import DatabaseUnavailableError, SettingsError, why

# The head of db/migrations: a test holds the two equal. Kept here so that a command can
# compare it without importing alembic, which takes longer than the command itself.
HEAD_REVISION = "0009"
# Our own longest transactions take a fraction of it. Shorter than a lease, so that sweepers know of the outage when
# somebody held the lock for so long that others could not renew theirs.
_SQLITE_BUSY_TIMEOUT_MS = 10_000
_CONNECT_TIMEOUT_S = 5
# A worker that is frozen or cut off inside a transaction holds rows that everybody needs, and the server would wait
# for it for hours. No transaction of ours pauses for so long: the server ends the session, and rolls back.
_MAX_IDLE_IN_TRANSACTION_S = 10
# The other way round: a server that is gone without a word is given up soon, and not after the kernel's quarter
# of an hour.
_POSTGRES_KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


_OWN_PLACE = "set PROMPTMILL_HOME or PROMPTMILL_DATABASE_URL to a place that you can write to"
_ELSEWHERE = "start it, or set PROMPTMILL_DATABASE_URL to one that runs"
# what is in a driver's reason, and what to do then; the first that is found counts
_NEXT_STEPS = (
    ("password", "give it in PGPASSWORD or ~/.pgpass"),
    ("authentication failed", "check the user in PROMPTMILL_DATABASE_URL, and the server's pg_hba.conf"),
    ("role ", "check the user in PROMPTMILL_DATABASE_URL"),
    ("does not exist", "make it with createdb, then run: promptmill db upgrade"),
    ("too many clients", "raise the server's max_connections, or run fewer workers"),
    ("resolve host", "check the host's name in PROMPTMILL_DATABASE_URL"),
    ("connection", _ELSEWHERE),
    ("timeout", _ELSEWHERE),
    ("not a database", "name another file in PROMPTMILL_DATABASE_URL, or move this one away"),
    ("malformed", "put a copy from before in its place, or move it away to begin anew"),
    ("readonly", _OWN_PLACE),
    ("unable to open", _OWN_PLACE),
)


def _sqlite_connect(connection: Any, _: object) -> None:
    # The driver must not open transactions of its own: `_sqlite_begin` says which kind each is.
    connection.isolation_level = None
    cursor = connection.cursor()
    # WAL: a reader never waits for the writer. FULL: what was committed survives a power cut,
    # at an fsync per commit, and there are only a few commits a second.
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        f"busy_timeout = {_SQLITE_BUSY_TIMEOUT_MS}",
        "foreign_keys = ON",
        "temp_store = MEMORY",
        "cache_size = -32768",
        "journal_size_limit = 67108864",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    # A write transaction takes the write lock at its start: one that upgrades later
    # would fail at once with SQLITE_BUSY, whatever the busy timeout.
    write = connection.get_execution_options().get("promptmill_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _postgres_connect(connection: Any, _: object) -> None:
    connection.execute(f"SET idle_in_transaction_session_timeout = '{_MAX_IDLE_IN_TRANSACTION_S}s'")
    connection.commit()


def _hide_values(context: ExceptionContext) -> None:
    # To a broken rule Postgres adds a second line with the whole row, and rows hold prompts.
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None and error.args:
            error.args = (str(error.args[0]).partition("\n")[0], *error.args[1:])


def _create_sqlite_file(path: Path) -> None:
    """Make the file ourselves, since SQLite would make it readable to others; -wal and -shm take its mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise DatabaseUnavailableError(
            f"cannot open or make the database {path}: {why(error, _OWN_PLACE)}"
        ) from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (UrlError, ValueError):  # a ValueError would quote what stands where the port belongs
        raise SettingsError(
            "PROMPTMILL_DATABASE_URL is not a database URL; give sqlite:////path/to/file.db"
            " or postgresql://user@host/name"
        ) from None
    if "@" in (parsed.host or ""):  # the rest of the password, which must be in no message
        raise SettingsError(
            "PROMPTMILL_DATABASE_URL has more than one @; in a password write %40 for it, or use PGPASSWORD"
        )
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise SettingsError(
            f"PROMPTMILL_DATABASE_URL names {parsed.drivername}; jobs are stored in sqlite:///FILE or postgresql://..."
        )
    return parsed


class Database:
    """One database and its pool of connections. Safe to share between threads, not across a fork."""

    def __init__(self, url: str, pool_size: int = 8) -> None:
        self.url = _parse(url)
        self.is_sqlite = self.url.drivername == "sqlite"
        if self.is_sqlite:
            if not self.url.database or self.url.database == ":memory:":
                raise SettingsError(
                    "PROMPTMILL_DATABASE_URL names no file, and jobs must outlive the process; give sqlite:////path/to/file.db"
                )
            _create_sqlite_file(Path(self.url.database))
        arguments: dict[str, Any] = (
            {"timeout": _SQLITE_BUSY_TIMEOUT_MS / 1000}
            if self.is_sqlite
            else {
                **_POSTGRES_KEEPALIVE,
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "application_name": "promptmill",
            }
        )
        try:
            self._engine: Engine = create_engine(
                self.url,
                pool_size=pool_size,
                max_overflow=pool_size,
                # a server restarted between two calls costs a ping, and not an error
                pool_pre_ping=not self.is_sqlite,
                connect_args=arguments,
                # an error's text must not hold a statement's values: they are prompts
                hide_parameters=True,
            )
        except NoSuchModuleError as error:  # pragma: no cover  the driver is a dependency
            raise SettingsError(f"the database's driver is not installed: {error}") from error
        event.listen(self._engine, "handle_error", _hide_values)
        if self.is_sqlite:
            event.listen(self._engine, "connect", _sqlite_connect)
            event.listen(self._engine, "begin", _sqlite_begin)
        else:
            event.listen(self._engine, "connect", _postgres_connect)

    @property
    def label(self) -> str:
        """The URL without its password, for messages."""
        # libpq takes a password among the options too
        url = self.url.difference_update_query(["password", "sslpassword"])
        return url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: on SQLite a snapshot, on Postgres READ COMMITTED."""
        with (
            self._translated(),
            self._engine.connect() as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits when the block ends, and rolls back when it raises."""
        with self._translated(), self._engine.connect() as connection:
            connection = connection.execution_options(promptmill_write=True)
            with connection.begin():
                yield connection

    def is_locked(self) -> bool:
        """Whether somebody holds SQLite's one write lock at this moment. Never so on Postgres, which has none."""
        if not self.is_sqlite:
            return False
        try:
            with closing(sqlite3.connect(str(self.url.database), timeout=0, isolation_level=None)) as probe:
                probe.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the other bits say why it is
        return False

    def call(self, function: Callable[[Connection], Any]) -> Any:
        """Run `function` in a connection of its own, outside any transaction of ours (migrations)."""
        with self._translated(), self._engine.connect() as connection:
            return function(connection.execution_options(promptmill_write=True))

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, PoolTimeoutError) as error:
            raise DatabaseUnavailableError(self._explain(error)) from error
        except ProgrammingError as error:
            if self.revision() != HEAD_REVISION:
                raise DatabaseUnavailableError(self._needs_upgrade()) from error
            raise
        except DBAPIError as error:
            # SQLite has no class of its own for a file that is damaged, or no database
            if error.connection_invalidated or type(error) is DatabaseError:
                raise DatabaseUnavailableError(self._explain(error)) from error
            raise

    def _explain(self, error: DBAPIError | PoolTimeoutError) -> str:
        if isinstance(error, PoolTimeoutError):
            return f"every connection to {self.label} is busy; try again"
        # The driver's text only: SQLAlchemy's own adds the statement and its values, which are prompts.
        reason = str(error.orig).strip().splitlines()[0] if error.orig else "the connection was lost"
        if "no such table" in reason:
            return self._needs_upgrade()
        if "disk is full" in reason:
            return f"no space is left for the database {self.label}; nothing of this step was stored. Make room: df -h"
        if reason == "database is locked":
            reason += (
                " by another process, and has been for a while; perhaps one that was suspended while it wrote"
            )
        step = next(
            (step for words, step in _NEXT_STEPS if words in reason), "promptmill check looks at each part"
        )
        return f"the database {self.label} is not available: {reason}; {step}"

    def _needs_upgrade(self) -> str:
        return f"the database {self.label} is not at revision {HEAD_REVISION}; run: promptmill db upgrade"

    def revision(self) -> str | None:
        """The migration the database stands at; None for an empty one."""
        try:
            with self._engine.connect() as connection:
                return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except (DatabaseError, PoolTimeoutError) as error:
            reason = str(getattr(error, "orig", ""))
            if "no such table" in reason or ("does not exist" in reason and "alembic_version" in reason):
                return None
            raise DatabaseUnavailableError(self._explain(error)) from error
