"""A glance at the jobs for a shell's completion: it only reads, by the drivers alone.

`Database` would make a missing file, and takes longer to import than a shell's user waits.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from db.states import JobState

_SQLITE_FILE = "sqlite:///"
_TIMEOUT_S = 1
_SHOWN = tuple(state.value for state in JobState if state.is_visible)
_STATEMENT = """
    SELECT id, state, name FROM jobs
    WHERE state IN ({states}) AND (id LIKE {said} OR id LIKE {said_short})
    ORDER BY created_at DESC, id DESC LIMIT {limit}
"""

# id, state and name
Glimpse = tuple[str, str, str | None]


def glance_at_jobs(url: str, beginning: str, limit: int) -> list[Glimpse]:
    """The newest jobs whose id begins so, with or without `job_`. Any error of the driver passes through."""
    # an id holds neither % nor _ but for its prefix's, which may stand for any letter
    patterns = [f"{beginning}%", f"job_{beginning}%"]
    if url.startswith(_SQLITE_FILE):
        return _of_sqlite(url.removeprefix(_SQLITE_FILE).partition("?")[0], [*_SHOWN, *patterns, limit])
    return _of_postgres(url, [*_SHOWN, *patterns, limit])


def _statement(mark: str) -> str:
    states = ", ".join([mark] * len(_SHOWN))
    return _STATEMENT.format(states=states, said=mark, said_short=mark, limit=mark)


def _of_sqlite(file: str, values: list[object]) -> list[Glimpse]:
    # rw makes no file either, and unlike ro leaves none of SQLite's own behind
    address = f"{Path(file).absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=_TIMEOUT_S)) as connection:
        connection.execute("PRAGMA query_only = ON")
        return connection.execute(_statement("?"), values).fetchall()


def _of_postgres(url: str, values: list[object]) -> list[Glimpse]:
    import psycopg

    address = "postgresql://" + url.partition("://")[2]
    with psycopg.connect(address, connect_timeout=_TIMEOUT_S) as connection:
        connection.read_only = True
        return connection.execute(_statement("%s").encode(), values).fetchall()
