"""Bringing a database to the newest migration."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from db.database import HEAD_REVISION, Database
from db.errors import DatabaseUnavailableError, why

if TYPE_CHECKING:
    from alembic.config import Config

# Any number, as long as every promptmill takes the same lock.
_POSTGRES_LOCK = 7_211_094_025


def open_database(url: str, pool_size: int = 8) -> Database:
    """The database at `url`, ready for use. An SQLite file is made and brought up to date by whoever comes first;
    on Postgres that is left to `promptmill db upgrade`, and DatabaseUnavailableError says so."""
    database = Database(url, pool_size)
    try:
        _bring_to_head(database)
    except BaseException:
        database.close()
        raise
    return database


def _bring_to_head(database: Database) -> None:
    found = database.revision()
    if found == HEAD_REVISION:
        return
    if not database.is_sqlite and not is_newer(found):
        raise DatabaseUnavailableError(
            f"the database {database.label} is at revision {found or 'none'} and not {HEAD_REVISION};"
            " run: promptmill db upgrade"
        )
    upgrade(database)


def is_newer(revision: str | None) -> bool:
    """Whether a database at this revision was written by a promptmill newer than this one: they are numbered."""
    return revision is not None and revision.isdigit() and int(revision) > int(HEAD_REVISION)


def _newer(database: Database, found: object) -> DatabaseUnavailableError:
    return DatabaseUnavailableError(
        f"the database {database.label} was written by a newer promptmill: it is at revision {found}, and this one"
        f" knows {HEAD_REVISION}; run: pip install --upgrade promptmill"
    )


def config(connection: Connection | None = None) -> "Config":
    """alembic's configuration, without a file."""
    from alembic.config import (
        Config,
    )  # 0.2 s, which commands that find the database up to date do not pay

    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    made.attributes["connection"] = connection
    return made


def upgrade(database: Database) -> None:
    """Run the migrations that are missing. Safe to call again, and from several processes at once."""
    if is_newer(found := database.revision()):
        raise _newer(database, found)
    with _alone(database):
        database.call(lambda connection: _upgrade(database, connection))


def _upgrade(database: Database, connection: Connection) -> None:
    from alembic import command
    from alembic.util import CommandError

    if not database.is_sqlite:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _POSTGRES_LOCK})
        connection.commit()
    try:
        with unchecked_foreign_keys(connection):
            command.upgrade(config(connection), "head")
            connection.commit()
    except CommandError as error:
        raise DatabaseUnavailableError(
            f"the database {database.label} is not one of promptmill's: {error}; name another file or database"
        ) from error
    finally:
        if not database.is_sqlite:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _POSTGRES_LOCK})
            connection.commit()


@contextmanager
def unchecked_foreign_keys(connection: Connection) -> Iterator[None]:
    """On SQLite a table is changed by making it anew: while the old one is dropped, others refer to nothing."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection  # the setting has no effect inside a transaction
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """On SQLite a lock file beside the database: alembic's own transactions do not exclude each other."""
    if not database.is_sqlite:
        yield
        return
    path = Path(f"{database.url.database}.upgrade.lock")
    try:
        lock = path.open("a")
    except OSError as error:
        raise DatabaseUnavailableError(f"cannot make {path}, which upgrades lock: {why(error)}") from error
    with lock:
        path.chmod(0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
