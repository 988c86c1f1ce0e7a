"""The database itself refuses a wrong row: each CHECK, unique key and foreign key once, by raw inserts."""

import uuid
from typing import Any

import pytest
from sqlalchemy import CheckConstraint, Table, insert
from sqlalchemy.exc import IntegrityError

from db.database import Database
from db.tables import (
    chunks,
    generations,
    job_labels,
    job_workers,
    jobs,
    metadata,
    requests,
    results,
    schedules,
    workers,
)


def _good(table: Table) -> dict[str, Any]:
    """A row that every rule allows, beside a job `job_x` and a worker `worker_x`."""
    new_id = uuid.uuid4().hex
    rows: dict[Table, dict[str, Any]] = {
        jobs: {
            "id": new_id,
            "state": "queued",
            "card_name": "tiny",
            "card_sha256": "c" * 64,
            "card": "name: tiny",
            "input_name": "input.jsonl",
            "input_sha256": "i" * 64,
            "num_requests": 2,
            "created_at": 1.0,
        },
        workers: {
            "id": new_id,
            "state": "ready",
            "card_name": "tiny",
            "engine": "echo",
            "host": "host",
            "pid": 1,
            "started_at": 1.0,
            "heartbeat_at": 1.0,
        },
        chunks: {
            "job_id": "job_x",
            "first_index": 0,
            "num_requests": 2,
            "state": "running",
            "lease_id": new_id,
            "lease_until": 1.0,
            "worker_id": "worker_x",
        },
        job_workers: {"job_id": "job_x", "worker_id": "worker_x"},
        job_labels: {"job_id": "job_x", "key": "team", "value": "eval", "created_at": 1.0},
        requests: {"job_id": new_id, "index": 0, "custom_id": "id-0", "body": "{}"},
        results: {
            "job_id": new_id,
            "index": 0,
            "status": "succeeded",
            "result": "{}",
            "attempt": 1,
            "finished_at": 1.0,
            "position": 1,
        },
        schedules: {
            "name": new_id,
            "cron": "* * * * *",
            "timezone": "UTC",
            "arguments": "[]",
            "submit": "{}",
            "created_at": 1.0,
            "due_at": 120.0,
            "firing_due_at": 60.0,
            "num_tries": 1,
            "lease_id": new_id,
            "lease_until": 1.0,
        },
        generations: {"key": "k" * 32, "job_id": new_id, "index": 0, "lease_id": new_id},
    }
    return rows[table]


_NO_LEASE: dict[str, Any] = {"lease_id": None, "lease_until": None, "worker_id": None}
_FAILED = {"status": "failed", "result": None, "error_code": "engine_error", "error_message": "it broke"}

# One rule broken at a time: the table, the name of its CHECK, and what makes the good row wrong.
_WRONG: list[tuple[Table, str, dict[str, Any]]] = [
    (jobs, "state", {"state": "paused"}),
    (jobs, "input_format", {"input_format": "yaml"}),
    (jobs, "submit_lease", {"state": "validating"}),
    (jobs, "submit_lease", {"submit_lease_until": 1.0}),
    (jobs, "whole", {"input_sha256": None}),
    (jobs, "finished", {"state": "completed", "num_succeeded": 2}),
    (jobs, "finished", {"state": "cancelled"}),
    (jobs, "finished", {"state": "expired"}),
    (jobs, "finished", {"state": "deleting", "finished_at": 1.0}),
    (jobs, "finished", {"state": "cancelling", "finished_at": 1.0}),
    (jobs, "counts", {"num_requests": -1}),
    (jobs, "counts", {"num_succeeded": -1}),
    (jobs, "counts", {"num_failed": -1}),
    (jobs, "counts", {"num_succeeded": 2, "num_failed": 1}),
    (jobs, "completed", {"state": "completed", "finished_at": 1.0, "num_succeeded": 1}),
    (jobs, "retried", {"num_retried": -1}),
    (jobs, "ancestors", {"root_id": "job_y"}),
    (jobs, "ancestors", {"ancestors": "job_y"}),
    (jobs, "reused", {"num_reused": -1}),
    (jobs, "reused", {"num_reused": 2, "num_succeeded": 1}),
    (workers, "state", {"state": "asleep"}),
    (chunks, "state", {**_NO_LEASE, "state": "paused"}),
    (chunks, "lease", _NO_LEASE),
    (chunks, "lease", {"lease_until": None}),
    (chunks, "lease", {"worker_id": None}),
    (chunks, "lease", {"state": "queued"}),
    (chunks, "lease", {"state": "done", "num_succeeded": 2}),
    (chunks, "lease", {**_NO_LEASE, "state": "queued", "lease_until": 1.0}),
    (chunks, "lease", {**_NO_LEASE, "state": "queued", "worker_id": "worker_x"}),
    (chunks, "range", {"num_requests": 0}),
    (chunks, "range", {"first_index": -1}),
    (chunks, "range", {"attempt": -1}),
    (chunks, "counts", {"num_succeeded": -1}),
    (chunks, "counts", {"num_failed": -1}),
    (chunks, "counts", {"num_succeeded": 2, "num_failed": 1}),
    (chunks, "alone", {"is_alone": True}),
    (chunks, "alone", {**_NO_LEASE, "state": "queued", "is_suspect": True, "is_alone": True}),
    (chunks, "done", {**_NO_LEASE, "state": "done", "num_succeeded": 1}),
    (chunks, "reused", {"num_reused": -1}),
    (chunks, "reused", {"num_reused": 2, "num_succeeded": 1}),
    (requests, "index", {"index": -1}),
    (results, "status", {"status": "cancelled", "result": None}),
    (results, "position", {"position": 0}),
    (results, "result", {"result": None}),
    (results, "result", {**_FAILED, "result": "{}"}),
    (results, "error", {"error_code": "engine_error", "error_message": "it broke"}),
    (results, "error", {**_FAILED, "error_code": None}),
    (results, "error", {**_FAILED, "error_code": None, "error_message": None}),
    (results, "error", {**_FAILED, "error_message": None}),
    (schedules, "lease", {"lease_id": None}),
    (schedules, "lease", {"lease_until": None}),
    (schedules, "lease", {"firing_due_at": None}),
    (schedules, "lease", {"num_tries": 0}),
    (schedules, "lease", {"lease_id": None, "lease_until": None, "firing_due_at": None}),
    (schedules, "due", {"firing_due_at": 120.0}),
    (results, "reused", {**_FAILED, "reused_from": "job_1:0"}),
]
# Two rows that cannot both be: the table, the columns of the key, and what both have in it.
_TWICE: list[tuple[Table, tuple[str, ...], dict[str, Any]]] = [
    (jobs, ("id",), {"id": "job_1"}),
    (jobs, ("idempotency_key",), {"idempotency_key": "nightly"}),
    (workers, ("id",), {"id": "worker_1"}),
    (chunks, ("job_id", "first_index"), {"first_index": 0}),
    (job_labels, ("job_id", "key"), {"value": "a"}),
    (requests, ("job_id", "index"), {"job_id": "job_1", "custom_id": None}),
    (requests, ("job_id", "custom_id"), {"job_id": "job_1", "custom_id": "same"}),
    (results, ("job_id", "index"), {"job_id": "job_1"}),
    (results, ("job_id", "position"), {"job_id": "job_1"}),
    (schedules, ("name",), {"name": "nightly"}),
    (generations, ("key", "job_id"), {"key": "k", "job_id": "job_1"}),
]


def _insert(database: Database, table: Table, **wrong: Any) -> None:
    with database.write() as tx:
        tx.execute(insert(table).values(**{**_good(table), **wrong}))


@pytest.fixture
def seeded(database: Database) -> Database:
    """Holds the job and the worker that a chunk refers to."""
    _insert(database, jobs, id="job_x")
    _insert(database, workers, id="worker_x")
    return database


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=str)
def test_the_good_row_is_taken(seeded: Database, table: Table) -> None:
    _insert(seeded, table)


def test_other_good_rows_are_taken(seeded: Database) -> None:
    _insert(seeded, jobs, state="validating", submit_lease_until=1.0, input_sha256=None)
    for state in ("completed", "cancelled", "expired"):
        _insert(seeded, jobs, state=state, finished_at=1.0, num_succeeded=1, num_failed=1)
    for state in ("cancelled", "expired"):
        _insert(seeded, jobs, state=state, finished_at=1.0)
    _insert(seeded, jobs, state="deleting", input_sha256=None)
    _insert(seeded, chunks, **_NO_LEASE, state="done", num_succeeded=1, num_failed=1)
    _insert(seeded, chunks, **_NO_LEASE, first_index=2, state="queued", num_succeeded=1)
    _insert(seeded, chunks, **_NO_LEASE, first_index=6, state="queued", is_suspect=True)
    _insert(seeded, chunks, first_index=8, is_suspect=True, is_alone=True)
    _insert(seeded, requests, custom_id=None, body=None)
    _insert(seeded, results, **_FAILED)
    _insert(seeded, schedules, lease_id=None, lease_until=None, firing_due_at=None, num_tries=0)


def test_each_wrong_row_is_refused_by_its_rule(seeded: Database) -> None:
    for table, rule, wrong in _WRONG:
        with pytest.raises(IntegrityError) as caught:
            _insert(seeded, table, **wrong)
        assert f"ck_{table.name}_{rule}" in str(caught.value), wrong


def test_each_check_has_its_wrong_row() -> None:
    checks = {
        (table.name, str(check.name))
        for table in metadata.sorted_tables
        for check in table.constraints
        if isinstance(check, CheckConstraint)
    }
    assert {(table.name, f"ck_{table.name}_{rule}") for table, rule, _ in _WRONG} == checks


def _unique_name(table: Table, columns: tuple[str, ...]) -> str:
    if tuple(column.name for column in table.primary_key) == columns:
        return f"pk_{table.name}"
    # a partial index is named after its last column alone
    suffix = "custom_id" if table is requests else "_".join(columns)
    return f"uq_{table.name}_{suffix}"


@pytest.mark.parametrize(("table", "columns", "same"), _TWICE, ids=lambda value: str(value)[:40])
def test_no_key_is_taken_twice(
    seeded: Database, table: Table, columns: tuple[str, ...], same: dict[str, Any]
) -> None:
    # the second row keeps no other key
    others: dict[tuple[str, ...], dict[str, int]] = {
        ("job_id", "custom_id"): {"index": 1},
        ("job_id", "position"): {"index": 1},
    }
    other = {"position": 2} if (table, columns) == (results, ("job_id", "index")) else others.get(columns, {})
    _insert(seeded, table, **same)
    with pytest.raises(IntegrityError) as caught:
        _insert(seeded, table, **same, **other)
    in_sqlite = ", ".join(f"{table.name}.{column}" for column in columns)
    expected = f"UNIQUE constraint failed: {in_sqlite}" if seeded.is_sqlite else _unique_name(table, columns)
    assert expected in str(caught.value)


def test_no_two_chunks_share_a_lease(seeded: Database) -> None:
    _insert(seeded, chunks, lease_id="lease")
    with pytest.raises(IntegrityError, match="lease_id"):
        _insert(seeded, chunks, lease_id="lease", first_index=2)


def test_keys_that_are_null_do_not_clash(seeded: Database) -> None:
    for index in range(2):
        _insert(seeded, jobs, idempotency_key=None)
        _insert(seeded, chunks, **_NO_LEASE, state="queued", first_index=2 * index)
        _insert(seeded, requests, job_id="job_1", index=index, custom_id=None)


def test_two_jobs_may_use_the_same_custom_id(seeded: Database) -> None:
    _insert(seeded, requests, job_id="job_1", custom_id="same")
    _insert(seeded, requests, job_id="job_2", custom_id="same")


@pytest.mark.parametrize("column", ["job_id", "worker_id"])
def test_a_chunk_belongs_to_a_job_and_a_worker_that_exist(seeded: Database, column: str) -> None:
    with pytest.raises(IntegrityError, match=r"(?i)foreign key constraint"):
        _insert(seeded, chunks, **{column: "missing"})
