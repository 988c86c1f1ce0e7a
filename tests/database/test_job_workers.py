"""Which workers ran anything of a job, and what they tell of themselves."""

from functools import partial

from database.rows import all_at_once, cancel, finish_all, register, submit
from sqlalchemy import text

from db import leases, queries, recovery, transitions
from db.database import Database
from jobs.retention import delete


def _noted(database: Database, job_id: str) -> list[tuple[str, str | None]]:
    return [(one.id, one.details) for one in queries.list_job_workers(database, job_id)]


def test_a_worker_is_noted_once_a_job_with_what_it_tells(database: Database) -> None:
    for worker_id in ("w1", "w2"):
        register(database, worker_id)
    with database.write() as tx:
        transitions.ready_worker(tx, "w2", '{"engine": {}}')
    submit(database, "job_a")
    submit(database, "job_b")
    for job_id, worker_id in (("job_a", "w2"), ("job_a", "w1"), ("job_a", "w2"), ("job_b", "w1")):
        leases.note_worker(database, job_id, worker_id)
    assert sorted(_noted(database, "job_a")) == [("w1", None), ("w2", '{"engine": {}}')]
    assert _noted(database, "job_b") == [("w1", None)]
    assert _noted(database, "job_c") == []


def test_threads_of_one_worker_may_note_it_at_once(database: Database) -> None:
    """Its slots begin a job's first chunks together."""
    register(database)
    for number in range(10):
        job_id = submit(database, f"job_{number}")
        note = partial(leases.note_worker, database, job_id, "w1")
        all_at_once([note] * 6)
        assert _noted(database, job_id) == [("w1", None)]


def test_a_worker_that_wakes_and_is_ready_again_keeps_what_it_told(database: Database) -> None:
    register(database)
    submit(database)
    with database.write() as tx:
        transitions.ready_worker(tx, "w1", '{"engine": {}}')
        tx.execute(text("UPDATE workers SET heartbeat_at = 0"))
    assert recovery.run_once(database, 1.0, 2).num_workers_lost == 1
    with database.write() as tx:
        transitions.ready_worker(tx, "w1")
    leases.note_worker(database, "job_a", "w1")
    assert _noted(database, "job_a") == [("w1", '{"engine": {}}')]


def test_a_job_that_is_gone_is_passed_over(database: Database) -> None:
    """A worker that was frozen may wake after its job was deleted."""
    register(database)
    leases.note_worker(database, "job_a", "w1")
    assert _noted(database, "job_a") == []


def test_a_deleted_job_takes_its_notes_along(database: Database) -> None:
    register(database)
    for job_id, end in (
        ("job_a", lambda database, _: finish_all(database)),
        ("job_b", cancel),
        ("job_c", None),
    ):
        submit(database, job_id)
        leases.note_worker(database, job_id, "w1")
        if end is not None:
            end(database, job_id)
            delete(database, job_id)
    with database.read() as tx:
        assert tx.execute(text("SELECT job_id FROM job_workers")).scalars().all() == ["job_c"]
