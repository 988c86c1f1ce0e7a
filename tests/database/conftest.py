"""One more database: shared by a file's tests, for those many small ones that each keep to rows of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Postgres
from sqlalchemy import create_engine, text

from db.database import Database
from db.upgrade import upgrade


@pytest.fixture(scope="session")
def postgres(postgres: Postgres) -> Postgres:
    """The same server in a hurry: what a power cut would cost is of no interest here, and fsync takes minutes."""
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    return postgres


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('shared') / 'test.db'}"
    else:
        name = f"shared_{request.node.path.stem}"
        url = request.getfixturevalue("postgres").create_database(name, template="template_promptmill")
    opened = Database(url)
    upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def postgres_database(postgres: Postgres, tmp_path: Path) -> Iterator[Database]:
    """For what SQLite, with its one writer, cannot show: a second connection that holds a lock."""
    name = f"alone_{''.join(filter(str.isalnum, tmp_path.name.lower()))}"
    opened = Database(postgres.create_database(name[:60], template="template_promptmill"))
    yield opened
    opened.close()
