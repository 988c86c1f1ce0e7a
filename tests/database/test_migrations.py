"""Migrations lead to the tables of `db.tables`, once, however many run them; and what a database file looks like."""

import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from database.rows import (
    all_at_once,
    claim,
    finish,
    positions,
    record,
    register,
    result_rows,
    submit,
    success,
)
from servers import Postgres
from sqlalchemy import Connection, inspect, text

from db import generations, leases, queries, recovery, retries, schedules, transitions
from db.activity import find_failures
from db.database import HEAD_REVISION, Database
from db.errors import DatabaseUnavailableError
from db.queries import Counts
from db.schedules import NewSchedule
from db.tables import metadata
from db.transitions import NewJob, Tally
from db.upgrade import config, open_database, unchecked_foreign_keys, upgrade

MakeUrl = Callable[[str], str]


@pytest.fixture(params=["sqlite", "postgres"])
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> MakeUrl:
    """Makes databases without any table; each name once."""
    if request.param == "sqlite":
        return lambda name: f"sqlite:///{tmp_path / name}.db"
    server: Postgres = request.getfixturevalue("postgres")
    prefix = re.sub(r"\W", "_", tmp_path.name.lower())[-40:]
    return lambda name: server.create_database(f"{name}_{prefix}")


@pytest.fixture
def empty_url(make_url: MakeUrl) -> str:
    return make_url("empty")


@pytest.fixture
def migrated(make_url: MakeUrl) -> Iterator[Database]:
    """A database whose tables the test may change."""
    opened = Database(make_url("migrated"))
    upgrade(opened)
    yield opened
    opened.close()


def _schema(connection: Connection) -> dict[str, Any]:
    """Everything the database knows of our tables."""
    inspector = inspect(connection)

    def by_name(items: Any) -> list[Any]:
        return sorted(
            ({**item, "type": str(item.get("type"))} for item in items), key=lambda i: str(i["name"])
        )

    return {
        table: [
            inspector.get_pk_constraint(table),
            # WITHOUT ROWID; Postgres has no such options
            inspector.get_table_options(table) if connection.dialect.name == "sqlite" else {},
            by_name(inspector.get_columns(table)),
            by_name(inspector.get_check_constraints(table)),
            by_name(inspector.get_unique_constraints(table)),
            by_name(inspector.get_foreign_keys(table)),
            [
                {**index, "dialect_options": {k: str(v) for k, v in index["dialect_options"].items()}}
                for index in sorted(inspector.get_indexes(table), key=lambda index: str(index["name"]))
            ],
        ]
        for table in sorted(inspector.get_table_names())
        if table != "alembic_version"
    }


def test_the_migrated_database_is_what_the_tables_say(database: Database) -> None:
    def compare(connection: Connection) -> Any:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return compare_metadata(context, metadata)

    assert database.call(compare) == []


def test_the_migrated_database_has_the_rules_too(migrated: Database, make_url: MakeUrl) -> None:
    """alembic compares neither CHECKs nor an index's condition; the database lists both."""
    created = Database(make_url("created"))
    try:
        with created.write() as tx:
            metadata.create_all(tx)
        found, expected = migrated.call(_schema), created.call(_schema)
    finally:
        created.close()
    assert found.keys() == expected.keys() == metadata.tables.keys()
    for table in expected:
        assert found[table] == expected[table], table


def test_the_head_in_the_code_is_the_head_of_the_migrations() -> None:
    assert ScriptDirectory.from_config(config()).get_current_head() == HEAD_REVISION


def test_an_upgrade_brings_an_empty_database_to_the_head(empty_url: str) -> None:
    database = Database(empty_url)
    assert database.revision() is None
    upgrade(database)
    assert database.revision() == HEAD_REVISION
    database.close()


def test_a_second_upgrade_changes_nothing(database: Database) -> None:
    submit(database)
    before = database.call(_schema)
    upgrade(database)
    assert database.revision() == HEAD_REVISION
    assert database.call(_schema) == before
    with database.read() as tx:
        assert tx.execute(text("SELECT count(*) FROM requests")).scalar_one() == 4


def test_upgrades_at_the_same_time_wait_for_each_other(empty_url: str) -> None:
    databases = [Database(empty_url) for _ in range(4)]
    all_at_once([lambda database=database: upgrade(database) for database in databases])  # type: ignore[misc]
    assert [database.revision() for database in databases] == [HEAD_REVISION] * 4
    with databases[0].read() as tx:
        assert tx.execute(text("SELECT count(*) FROM alembic_version")).scalar_one() == 1
    for database in databases:
        database.close()


def test_a_downgrade_to_the_base_leaves_no_table(migrated: Database) -> None:
    def downgrade(connection: Connection) -> list[str]:
        with unchecked_foreign_keys(connection):
            command.downgrade(config(connection), "base")
            connection.commit()
        return inspect(connection).get_table_names()

    submit(migrated)
    assert migrated.call(downgrade) == ["alembic_version"]
    upgrade(migrated)
    assert migrated.revision() == HEAD_REVISION


def _move(database: Database, run: Callable[[Config, str], None], target: str) -> None:
    def moved(connection: Connection) -> None:
        with unchecked_foreign_keys(connection):
            run(config(connection), target)
            connection.commit()

    database.call(moved)


def test_the_second_migration_keeps_jobs_and_sums_them_up(make_url: MakeUrl) -> None:
    """From the first tables: a job in each state, with chunks that were done, cancelled and given back half done."""
    database = Database(make_url("first"))
    move = partial(_move, database)
    move(command.upgrade, "0001")
    with database.write() as tx:
        job = text(
            "INSERT INTO jobs (id, state, card_name, card_sha256, card, input_name, input_sha256, num_requests,"
            " created_at, finished_at) VALUES (:state, :state, 'tiny', 'c', 'card', 'in', 'i', 4, 1.0, :finished_at)"
        )
        chunk = text(
            "INSERT INTO chunks (job_id, first_index, num_requests, state, num_succeeded, num_failed,"
            " prompt_tokens, completion_tokens) VALUES (:job_id, :first, 2, :state, :good, :bad, 30, 50)"
        )
        for state, last in (("completed", "done"), ("cancelled", "cancelled"), ("in_progress", "queued")):
            tx.execute(job, {"state": state, "finished_at": None if state == "in_progress" else 2.0})
            first = {"job_id": state, "first": 0, "state": "done", "good": 2, "bad": 0}
            tx.execute(chunk, first)
            tx.execute(chunk, {**first, "first": 2, "state": last, "good": 1, "bad": int(last == "done")})
    for _ in range(2):
        move(command.upgrade, "head")
        jobs = {job.id: job for job in queries.list_jobs(database, 10)}
        assert {job.id: job.counts for job in jobs.values()} == {
            "completed": Counts(succeeded=3, failed=1),
            "cancelled": Counts(succeeded=3, cancelled=1),
            "in_progress": Counts(succeeded=3, pending=1),
        }
        assert {(job.prompt_tokens, job.completion_tokens) for job in jobs.values()} == {(60, 100)}
        register(database)
        assert claim(database).job_id == "in_progress"
        recovery.worker_died(database, "w1", 9)
        with database.write() as tx:
            tx.execute(text("UPDATE chunks SET worker_id = NULL"))
            tx.execute(text("DELETE FROM workers"))
        move(command.downgrade, "0001")
        with database.read() as tx:
            states = tx.execute(
                text("SELECT state FROM chunks WHERE first_index = 2 ORDER BY job_id")
            ).scalars()
            assert list(states) == ["cancelled", "done", "queued"]
    database.close()


def test_the_third_migration_gives_results_positions_in_input_order(make_url: MakeUrl) -> None:
    """Two jobs whose results came in another order, and one of which goes on afterwards."""
    database = Database(make_url("second"))
    _move(database, command.upgrade, "0002")
    with database.write() as tx:
        for job_id, indexes in (("a", (7, 0, 3)), ("b", (1,))):
            tx.execute(
                text(
                    "INSERT INTO jobs (id, state, card_name, card_sha256, card, input_name, input_sha256, num_requests,"
                    " num_succeeded, created_at)"
                    " VALUES (:id, 'in_progress', 'tiny', 'c', 'card', 'in', 'i', 8, :num, 1.0)"
                ),
                {"id": job_id, "num": len(indexes)},
            )
            for index in indexes:
                tx.execute(
                    text(
                        'INSERT INTO results (job_id, "index", status, result, prompt_tokens, attempt, finished_at)'
                        " VALUES (:job_id, :index, 'succeeded', :result, 3, 1, 1.0)"
                    ),
                    {"job_id": job_id, "index": index, "result": f"result of {index}"},
                )
    for _ in range(2):
        _move(database, command.upgrade, "head")
        assert (positions(database, "a"), positions(database, "b")) == ({0: 1, 3: 2, 7: 3}, {1: 1})
        assert [row["result"] for row in result_rows(database, "a")] == [
            "result of 0",
            "result of 3",
            "result of 7",
        ]
        job = queries.get_job(database, "a")
        assert (job.input_format, job.sampling, job.counts.succeeded) == ("card", None, 3)
        with database.write() as tx:
            assert transitions.count_results(tx, "a", Tally()) == (4, 5)
        _move(database, command.downgrade, "0002")
    database.close()


def test_the_ninth_migration_finds_the_failures_there_are(make_url: MakeUrl) -> None:
    database = Database(make_url("before_ninth"))
    _move(database, command.upgrade, "0004")
    with database.write() as tx:
        for index in range(3):
            tx.execute(
                text(
                    'INSERT INTO results (job_id, "index", status, error_code, error_message, attempt, finished_at,'
                    " position) VALUES ('a', :index, 'failed', :code, 'm', 1, 1.0, :index + 1)"
                ),
                {"index": index, "code": f"code_{index % 2}"},
            )
    for _ in range(2):
        _move(database, command.upgrade, "head")
        assert "ix_results_failed" in database.call(_indexes_of_results)
        groups = find_failures(database, "a", 0)
        assert [(group.code, group.num) for group in groups] == [("code_0", 2), ("code_1", 1)]
        _move(database, command.downgrade, "0004")
        assert "ix_results_failed" not in database.call(_indexes_of_results)
    database.close()


def _indexes_of_results(connection: Connection) -> set[str | None]:
    return {index["name"] for index in inspect(connection).get_indexes("results")}


def test_the_fifth_migration_keeps_jobs_and_gives_them_labels_and_selections(make_url: MakeUrl) -> None:
    """A job of before has neither; one of after loses both on the way back, and itself stays."""
    database = Database(make_url("fourth"))
    _move(database, command.upgrade, "0004")
    with database.write() as tx:
        tx.execute(
            text(
                "INSERT INTO jobs (id, state, card_name, card_sha256, card, input_name, input_sha256, num_requests,"
                " created_at) VALUES ('old', 'queued', 'tiny', 'c', 'card', 'in', 'i', 4, 1.0)"
            )
        )
    expected: list[tuple[str, dict[str, str], str | None]] = [("old", {}, None)]
    for number in range(2):
        _move(database, command.upgrade, "head")
        listed = queries.list_jobs(database, 10)
        assert sorted((job.id, job.labels, job.selection) for job in listed) == expected
        new_id = submit(database, f"new_{number}", labels={"team": "eval"}, selection='{"limit": 4}')
        job = queries.get_job(database, new_id)
        assert (job.labels, job.selection) == ({"team": "eval"}, '{"limit": 4}')
        _move(database, command.downgrade, "0004")
        expected = [(new_id, {}, None), *expected]
    database.close()


def test_the_eighth_migration_keeps_workers_which_have_told_nothing(make_url: MakeUrl) -> None:
    database = Database(make_url("fourth"))
    _move(database, command.upgrade, "0004")
    with database.write() as tx:
        tx.execute(
            text(
                "INSERT INTO workers (id, state, card_name, engine, host, pid, started_at, heartbeat_at, details)"
                " VALUES ('w1', 'ready', 'tiny', 'echo', 'host', 1, 1.0, 2.0, '{}')"
            )
        )
    for _ in range(2):
        _move(database, command.upgrade, "head")
        (worker,) = queries.list_workers(database)
        assert (worker.id, worker.num_results, worker.completion_tokens) == ("w1", 0, 0)
        assert worker.completion_tokens_per_s is None
        schedules.add(database, NewSchedule("n", "* * * * *", "UTC", "[]", "{}", 60.0), replace=False)
        assert [due.name for due in schedules.list_due(database)] == ["n"]
        _move(database, command.downgrade, "0004")
    database.close()


def test_the_seventh_migration_closes_gaps_on_its_way_down(make_url: MakeUrl) -> None:
    """A job of the time before loses the second of its three results to a retry."""
    database = Database(make_url("fourth"))
    _move(database, command.upgrade, "0004")
    with database.write() as tx:
        for statement in (
            "INSERT INTO jobs (id, state, card_name, card_sha256, card, input_name, input_sha256, num_requests,"
            " num_succeeded, num_failed, created_at, finished_at)"
            " VALUES ('a', 'completed', 'tiny', 'c', 'card', 'in', 'i', 3, 2, 1, 1.0, 2.0)",
            "INSERT INTO chunks (job_id, first_index, num_requests, state, num_succeeded, num_failed)"
            " VALUES ('a', 0, 3, 'done', 2, 1)",
            """INSERT INTO requests (job_id, "index", body) VALUES ('a', 0, '{}'), ('a', 1, '{}'), ('a', 2, '{}')""",
            'INSERT INTO results (job_id, "index", status, result, error_code, error_message, attempt, finished_at,'
            " position) VALUES ('a', 0, 'succeeded', '{}', NULL, NULL, 1, 1.0, 3),"
            " ('a', 1, 'failed', NULL, 'engine_error', 'it broke', 1, 1.0, 2),"
            " ('a', 2, 'succeeded', '{}', NULL, NULL, 1, 1.0, 1)",
        ):
            tx.execute(text(statement))
    for num_taken in (1, 0):
        _move(database, command.upgrade, "head")
        job = queries.get_job(database, "a")
        assert (job.num_retried, job.ancestors, job.counts.failed) == (0, (), num_taken)
        assert retries.take_back(database, "a", ["engine_error"]) == num_taken
        with database.write() as tx:
            assert transitions.count_results(tx, "a", Tally()) == (3 + num_taken, 1)
            child = NewJob(f"child{num_taken}", "tiny", "c", "card", "in", ancestors=("a",))
            transitions.stage_job(tx, child, 60.0)
        _move(database, command.downgrade, "0004")
        assert positions(database, "a") == {0: 2, 2: 1}
    database.close()


def test_the_sixth_migration_keeps_jobs_in_which_nothing_was_reused(make_url: MakeUrl) -> None:
    """A job that is half done goes on afterwards, and what was generated in between is lost with the way down."""
    database = Database(make_url("fourth"))
    _move(database, command.upgrade, "head")
    submit(database, num_requests=4)
    register(database)
    finish(database, claim(database))
    for _ in range(2):
        _move(database, command.downgrade, "0004")
        _move(database, command.upgrade, "head")
        job = queries.get_job(database, "job_a")
        assert (job.counts.succeeded, job.num_reused, job.is_reusing) == (2, 0, False)
        assert [row["reused_from"] for row in result_rows(database, "job_a")] == [None, None]
        lease = claim(database)
        assert generations.claim(database, lease, {"k": 2}, is_reusing=True).mine == {"k"}
        leases.release(database, lease)
    lease = claim(database)
    copies = [replace(success(index), reused_from="job_z:0") for index in (2, 3)]
    record(database, lease, copies, is_last=True)
    assert queries.get_job(database, "job_a").num_reused == 2
    database.close()


def test_a_database_of_a_newer_promptmill_is_left_alone(migrated: Database) -> None:
    with migrated.write() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseUnavailableError, match="written by a newer promptmill"):
        upgrade(migrated)
    assert migrated.revision() == "9999"


def test_an_empty_postgres_is_for_the_person_to_upgrade(postgres: Postgres) -> None:
    url = postgres.create_database("never_migrated")
    with pytest.raises(DatabaseUnavailableError, match="promptmill db upgrade"):
        open_database(url)
    database = Database(url)
    assert database.revision() is None
    with pytest.raises(DatabaseUnavailableError, match="promptmill db upgrade"), database.read() as tx:
        tx.execute(text("SELECT 1 FROM jobs"))
    database.close()


def test_an_empty_sqlite_file_is_upgraded_when_opened(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'new' / 'jobs.db'}")
    assert database.revision() == HEAD_REVISION
    database.close()


def test_a_migrated_database_opens_at_once(database_url: str) -> None:
    database = open_database(database_url)
    assert database.revision() == HEAD_REVISION
    database.close()


def test_the_files_of_sqlite_are_private(sqlite_database: Database, home: Path) -> None:
    with sqlite_database.write():
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}
    assert modes.keys() >= {"promptmill.db", "promptmill.db-wal", "promptmill.db-shm"}
    assert set(modes.values()) == {0o600}


def test_sqlite_is_set_up_to_be_durable_and_shared(sqlite_database: Database) -> None:
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    with sqlite_database.read() as tx:
        found = {name: tx.execute(text(f"PRAGMA {name}")).scalar_one() for name in expected}
    assert found == expected
