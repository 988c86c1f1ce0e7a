"""The shared fixtures in a hurry: the same servers and the same migrated tables, but made once and then reused."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Postgres
from sqlalchemy import create_engine, text

from db.database import Database
from db.tables import metadata
from db.upgrade import upgrade


@pytest.fixture(scope="session")
def postgres(postgres: Postgres) -> Postgres:
    """What a power cut would cost is of no interest here, and fsync takes minutes."""
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    return postgres


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "template.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    database.close()
    return path


@pytest.fixture(scope="session")
def _reused_postgres(postgres: Postgres) -> Iterator[Database]:
    database = Database(postgres.create_database("reused", template="template_promptmill"), pool_size=1)
    yield database
    database.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty, migrated database of either kind. Whoever changes its tables takes one of its own instead."""
    if request.param == "sqlite":
        path = tmp_path / "test.db"
        shutil.copy(request.getfixturevalue("_sqlite_template"), path)
        return f"sqlite:///{path}"
    reused: Database = request.getfixturevalue("_reused_postgres")
    with reused.write() as tx:
        for table in reversed(metadata.sorted_tables):
            tx.execute(table.delete())
    return reused.url.render_as_string(hide_password=False)


@pytest.fixture
def postgres_database(postgres: Postgres, tmp_path: Path) -> Iterator[Database]:
    """For what SQLite, with its one writer, cannot show: a second connection that holds a lock, or is killed."""
    opened = Database(postgres.create_database(name_after(tmp_path), template="template_promptmill"))
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """One for all tests of a file: the many small ones that each keep to rows of their own."""
    folder = tmp_path_factory.mktemp("shared")
    if request.param == "sqlite":
        url = f"sqlite:///{folder / 'test.db'}"
    else:
        url = request.getfixturevalue("postgres").create_database(name_after(folder))
    opened = Database(url)
    upgrade(opened)
    yield opened
    opened.close()


def name_after(folder: Path) -> str:
    """A database's name that no other test uses; pytest names each test's folder once."""
    return "db_" + re.sub(r"\W", "_", folder.name.lower())[-40:]
