"""A driver's error becomes one of ours at the edge of `db`, and no text of it holds a password or a prompt."""

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from database.rows import PROMPT, stage, submit
from servers import Postgres
from sqlalchemy import Connection, insert, make_url, text
from sqlalchemy.exc import IntegrityError

import db.database
from db import queries, submits
from db.database import Database
from db.errors import DatabaseUnavailableError, SettingsError
from db.submits import NewRequest
from db.tables import requests, results

_SECRET = "swordfish"  # noqa: S105  nobody's password


def _assert_tells_nothing(error: BaseException) -> None:
    """Neither in its message nor in the traceback with all its causes, as a log would hold it."""
    whole = "".join(traceback.format_exception(error))
    assert PROMPT not in whole
    assert _SECRET not in whole


def _insert_request(tx: Connection, index: int) -> None:
    tx.execute(insert(requests).values(job_id="job_a", index=index, body=PROMPT))


@pytest.fixture
def rival(postgres_database: Database) -> Iterator[Database]:
    """A pool of its own for the database of `postgres_database`."""
    opened = Database(postgres_database.url.render_as_string(hide_password=False))
    yield opened
    opened.close()


def _kill_other_connections(database: Database) -> None:
    with database.write() as tx:
        tx.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


# --- Postgres is away -----------------------------------------------------------------------------------------


def test_a_connection_that_dies_within_a_transaction_is_told_and_nothing_is_stored(
    postgres_database: Database, rival: Database
) -> None:
    def insert_two() -> None:
        with postgres_database.write() as tx:
            _insert_request(tx, 0)
            _kill_other_connections(rival)
            _insert_request(tx, 1)

    with pytest.raises(DatabaseUnavailableError) as caught:
        insert_two()
    assert postgres_database.label in str(caught.value)
    _assert_tells_nothing(caught.value)
    with postgres_database.read() as tx:
        assert tx.execute(text("SELECT count(*) FROM requests")).scalar_one() == 0


def test_a_connection_that_dies_before_its_commit_is_told(
    postgres_database: Database, rival: Database
) -> None:
    def insert_one() -> None:
        with postgres_database.write() as tx:
            _insert_request(tx, 0)
            _kill_other_connections(rival)

    with pytest.raises(DatabaseUnavailableError) as caught:
        insert_one()
    _assert_tells_nothing(caught.value)


def test_a_connection_that_dies_between_two_calls_costs_no_error(
    postgres_database: Database, rival: Database
) -> None:
    submit(postgres_database)
    _kill_other_connections(rival)
    assert queries.get_job(postgres_database, "job_a").counts.pending == 4


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{_SECRET}@127.0.0.1:1/promptmill",
        f"postgresql://127.0.0.1:1/promptmill?user=user&password={_SECRET}",
        f"postgresql://user:{_SECRET}@/promptmill?host=/nonexistent",
    ],
)
def test_a_server_that_is_not_there_is_told_without_the_password(url: str) -> None:
    database = Database(url)
    assert _SECRET not in database.label
    for call in (database.revision, lambda: queries.list_jobs(database, 1)):
        with pytest.raises(DatabaseUnavailableError, match="is not available") as caught:
            call()
        _assert_tells_nothing(caught.value)
        assert "promptmill" in str(caught.value)
    database.close()


def test_a_database_that_is_not_there_is_told(postgres: Postgres) -> None:
    url = make_url(postgres.url).set(database="never_created", password=_SECRET)
    database = Database(url.render_as_string(hide_password=False))
    with pytest.raises(DatabaseUnavailableError, match="does not exist") as caught:
        queries.list_jobs(database, 1)
    _assert_tells_nothing(caught.value)
    database.close()


# --- SQLite is away -------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseUnavailableError, match="set PROMPTMILL_HOME"):
        Database(f"sqlite:///{tmp_path / 'file' / 'jobs.db'}")


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_text(PROMPT * 1_000)
    database = Database(f"sqlite:///{path}")
    for call in (database.revision, lambda: queries.list_jobs(database, 1)):
        with pytest.raises(DatabaseUnavailableError, match="not a database") as caught:
            call()
        _assert_tells_nothing(caught.value)
    database.close()


def test_a_file_without_tables_says_how_to_make_them(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}")
    with pytest.raises(DatabaseUnavailableError, match="promptmill db upgrade") as caught:
        stage(database)
    _assert_tells_nothing(caught.value)
    database.close()


def test_a_file_that_somebody_else_keeps_locked_is_told(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db.database, "_SQLITE_BUSY_TIMEOUT_MS", 20)
    impatient = Database(sqlite_database.url.render_as_string())
    with sqlite_database.write():
        with pytest.raises(DatabaseUnavailableError, match="locked"):
            stage(impatient)
        # who only reads waits for nobody
        assert queries.list_jobs(impatient, 1) == []
    stage(impatient)
    impatient.close()


def test_a_disk_that_is_full_is_told_and_nothing_is_stored(sqlite_database: Database) -> None:
    def insert_too_much() -> None:
        with sqlite_database.write() as tx:
            num_pages = tx.execute(text("PRAGMA page_count")).scalar_one()
            tx.execute(text(f"PRAGMA max_page_count = {num_pages}"))
            tx.execute(insert(requests).values(job_id="job_a", index=0, body=PROMPT * 10_000))

    with pytest.raises(DatabaseUnavailableError, match="no space is left") as caught:
        insert_too_much()
    _assert_tells_nothing(caught.value)
    with sqlite_database.read() as tx:
        assert tx.execute(text("SELECT count(*) FROM requests")).scalar_one() == 0


# --- either ---------------------------------------------------------------------------------------------------


def test_a_pool_with_no_connection_left_is_told(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(database_url, pool_size=1)
    monkeypatch.setattr(database._engine.pool, "_timeout", 0.05)
    with database.read(), database.read():
        with pytest.raises(DatabaseUnavailableError, match="connection"):
            queries.list_jobs(database, 1)
        with pytest.raises(DatabaseUnavailableError, match="connection"):
            database.revision()
    assert queries.list_jobs(database, 1) == []
    database.close()


def test_a_rule_that_is_broken_names_the_rule_and_no_value(database: Database) -> None:
    """Postgres adds the whole row to such an error, and rows hold prompts."""
    with pytest.raises(IntegrityError, match="ck_results_error") as caught, database.write() as tx:
        tx.execute(
            insert(results).values(
                job_id="job_a",
                index=0,
                status="failed",
                error_message=PROMPT,
                attempt=1,
                finished_at=1.0,
                position=1,
            )
        )
    _assert_tells_nothing(caught.value)


def test_a_key_that_is_taken_twice_names_the_key_and_no_value(database: Database) -> None:
    stage(database)
    with pytest.raises(IntegrityError) as caught:
        submits.add(database, "job_a", [NewRequest(n, PROMPT, "{}") for n in (4, 5)], [])
    _assert_tells_nothing(caught.value)


def test_a_text_that_no_database_stores_is_refused_without_it(postgres_database: Database) -> None:
    with pytest.raises(Exception, match="NUL") as caught, postgres_database.write() as tx:
        tx.execute(insert(requests).values(job_id="job_a", index=0, body=f"\0{PROMPT}"))
    _assert_tells_nothing(caught.value)


def test_a_block_that_raises_stores_nothing(database: Database) -> None:
    def insert_and_fail() -> None:
        with database.write() as tx:
            _insert_request(tx, 0)
            raise LookupError

    with pytest.raises(LookupError):
        insert_and_fail()
    with database.read() as tx:
        assert tx.execute(text("SELECT count(*) FROM requests")).scalar_one() == 0


@pytest.mark.parametrize(
    "url",
    [
        "no url",
        f"postgresql://user:{_SECRET}@host:port/name",
        f"mysql://user:{_SECRET}@host/name",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_a_url_that_names_no_database_of_ours_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="PROMPTMILL_DATABASE_URL") as caught:
        Database(url)
    _assert_tells_nothing(caught.value)
