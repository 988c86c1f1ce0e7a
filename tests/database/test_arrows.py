"""Every state moves along its arrows and no other way: each (arrow x state) pair, on both databases."""

import ast
import inspect
import uuid
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from database.rows import row_of
from sqlalchemy import Connection, Table, insert, select, update

from db import transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError, WrongStateError
from db.states import (
    CHUNK_ARROWS,
    JOB_ARROWS,
    WORKER_ARROWS,
    Arrow,
    ChunkState,
    JobState,
    WorkerState,
)
from db.tables import chunks, jobs, now_s, workers
from db.transitions import Lease

_LEASE_COLUMNS = {"lease_id", "lease_until", "worker_id"}
# What each arrow writes beside the state, and nothing more.
_JOB_WRITES: dict[str, set[str]] = {
    "enqueue": {"num_requests", "input_sha256", "idempotency_key", "submit_lease_until"},
    "start": {"started_at"},
    "complete": {"finished_at"},
    "cancel": set(),
    "end_cancel": {"finished_at"},
}
_CHUNK_WRITES: dict[str, set[str]] = {
    "claim": {*_LEASE_COLUMNS, "attempt", "started_at"},
    "finish": {*_LEASE_COLUMNS, "finished_at"},
    "release": {*_LEASE_COLUMNS, "attempt"},
    "requeue": _LEASE_COLUMNS,
    "cancel": {*_LEASE_COLUMNS, "finished_at"},
}
_WORKER_WRITES: dict[str, set[str]] = {
    "ready": {"heartbeat_at"},
    "drain": {"heartbeat_at"},
    "stop": {"heartbeat_at"},
    "lose": set(),
}
# Functions of `transitions` that are no arrow: births, deaths, locks, and a lease's own renewal.
_NO_ARROWS = {
    "stage_job",
    "register_worker",
    "renew_submit",
    "abandon_submit",
    "lock_job",
    "close_job_if_over",
    "delete_rows",
    "delete_staged_job",
}


def _pairs(arrows: Mapping[str, Arrow[Any]], states: Iterable[StrEnum]) -> list[Any]:
    return [
        pytest.param(arrow, state, id=f"{arrow.name}-{state}")
        for arrow in arrows.values()
        for state in states
    ]


def _assert_moved(
    before: dict[str, Any], after: dict[str, Any], arrow: Arrow[Any], writes: set[str], now: float
) -> None:
    assert after["state"] == arrow.target
    changed = {name for name in after if after[name] != before[name]}
    assert changed - {"state"} == writes
    for name in writes & {"started_at", "finished_at", "heartbeat_at"}:
        assert after[name] == pytest.approx(now, abs=60), name


def _assert_refused(
    tx: Connection, table: Table, key: object, arrow: Arrow[Any], call: Callable[[], Any]
) -> None:
    before = row_of(tx, table, key)
    with pytest.raises(WrongStateError) as caught:
        call()
    assert caught.value.current == before["state"]
    assert caught.value.expected == arrow.sources
    assert row_of(tx, table, key) == before


def _now(tx: Connection) -> float:
    return float(tx.execute(select(now_s())).scalar_one())


# --- jobs -----------------------------------------------------------------------------------------------------


def _insert_job(tx: Connection, state: JobState) -> str:
    job_id = uuid.uuid4().hex
    is_staged = state is JobState.VALIDATING
    tx.execute(
        insert(jobs).values(
            id=job_id,
            state=state,
            card_name="tiny",
            card_sha256="c" * 64,
            card="name: tiny",
            input_name="input.jsonl",
            input_sha256=None if is_staged else "i" * 64,
            submit_lease_until=now_s() + 600 if is_staged else None,
            created_at=now_s(),
            finished_at=1.0 if state.is_final else None,
        )
    )
    return job_id


def _move_job(tx: Connection, arrow: str, job_id: str) -> None:
    if arrow == "enqueue":
        transitions.enqueue_job(
            tx, job_id, num_requests=7, input_sha256="e" * 64, idempotency_key=uuid.uuid4().hex
        )
    else:
        getattr(transitions, f"{arrow}_job")(tx, job_id)


@pytest.mark.parametrize(("arrow", "state"), _pairs(JOB_ARROWS, JobState))
def test_a_job_moves_along_its_arrows_only(
    shared_database: Database, arrow: Arrow[JobState], state: JobState
) -> None:
    with shared_database.write() as tx:
        job_id = _insert_job(tx, state)
        if state not in arrow.sources:
            _assert_refused(tx, jobs, job_id, arrow, lambda: _move_job(tx, arrow.name, job_id))
            return
        before = row_of(tx, jobs, job_id)
        _move_job(tx, arrow.name, job_id)
        _assert_moved(before, row_of(tx, jobs, job_id), arrow, _JOB_WRITES[arrow.name], _now(tx))


@pytest.mark.parametrize("arrow", JOB_ARROWS)
def test_a_job_that_is_missing_is_not_found(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx, pytest.raises(NotFoundError, match="no job job_missing"):
        _move_job(tx, arrow, "job_missing")


def test_a_job_is_enqueued_whole(shared_database: Database) -> None:
    with shared_database.write() as tx:
        job_id = _insert_job(tx, JobState.VALIDATING)
        transitions.enqueue_job(
            tx, job_id, num_requests=7, input_sha256="e" * 64, idempotency_key=f"key-{job_id}"
        )
        row = row_of(tx, jobs, job_id)
    assert row["num_requests"] == 7
    assert row["input_sha256"] == "e" * 64
    assert row["idempotency_key"] == f"key-{job_id}"
    assert row["submit_lease_until"] is None


def test_a_job_is_not_enqueued_after_its_submit_lease(shared_database: Database) -> None:
    with shared_database.write() as tx:
        job_id = _insert_job(tx, JobState.VALIDATING)
        tx.execute(update(jobs).where(jobs.c.id == job_id).values(submit_lease_until=now_s() - 1))
        before = row_of(tx, jobs, job_id)
        with pytest.raises(LeaseLostError):
            _move_job(tx, "enqueue", job_id)
        assert row_of(tx, jobs, job_id) == before


@pytest.mark.parametrize("chunk_state", [ChunkState.QUEUED, ChunkState.RUNNING])
@pytest.mark.parametrize(
    ("arrow", "job_state"),
    [("complete", JobState.IN_PROGRESS), ("end_cancel", JobState.CANCELLING)],
)
def test_a_job_does_not_end_while_a_chunk_is_open(
    shared_database: Database, arrow: str, job_state: JobState, chunk_state: ChunkState
) -> None:
    with shared_database.write() as tx:
        lease = _insert_chunk(tx, chunk_state, job_state=job_state)
        before = row_of(tx, jobs, lease.job_id)
        with pytest.raises(LeaseLostError):
            _move_job(tx, arrow, lease.job_id)
        assert row_of(tx, jobs, lease.job_id) == before


# --- chunks ---------------------------------------------------------------------------------------------------


def _insert_chunk(
    tx: Connection,
    state: ChunkState,
    *,
    lease_left_s: float = 300.0,
    job_state: JobState = JobState.IN_PROGRESS,
) -> Lease:
    """A chunk in a job of its own, with all its results counted, and the lease that it has or had."""
    job_id, worker_id = _insert_job(tx, job_state), _insert_worker(tx, WorkerState.READY)
    lease_id = uuid.uuid4().hex
    is_running = state is ChunkState.RUNNING
    chunk_id = tx.execute(
        insert(chunks)
        .values(
            job_id=job_id,
            first_index=0,
            num_requests=3,
            num_succeeded=3,
            state=state,
            attempt=1,
            lease_id=lease_id if is_running else None,
            lease_until=now_s() + lease_left_s if is_running else None,
            worker_id=worker_id if is_running else None,
        )
        .returning(chunks.c.id)
    ).scalar_one()
    return Lease(lease_id, chunk_id, job_id, 0, 3, 1)


def _move_chunk(tx: Connection, arrow: str, lease: Lease) -> None:
    if arrow == "claim":
        transitions.claim_chunk(tx, lease.chunk_id, _insert_worker(tx, WorkerState.READY), 300.0)
    else:
        getattr(transitions, f"{arrow}_chunk")(tx, lease)


@pytest.mark.parametrize(("arrow", "state"), _pairs(CHUNK_ARROWS, ChunkState))
def test_a_chunk_moves_along_its_arrows_only(
    shared_database: Database, arrow: Arrow[ChunkState], state: ChunkState
) -> None:
    with shared_database.write() as tx:
        lease = _insert_chunk(tx, state, lease_left_s=-1.0 if arrow.name == "requeue" else 300.0)
        if state not in arrow.sources:
            _assert_refused(tx, chunks, lease.chunk_id, arrow, lambda: _move_chunk(tx, arrow.name, lease))
            return
        before = row_of(tx, chunks, lease.chunk_id)
        writes = _CHUNK_WRITES[arrow.name]
        if (arrow.name, state) == ("cancel", ChunkState.QUEUED):
            # nobody holds it, so it goes with its job
            transitions.cancel_job(tx, lease.job_id)
            writes = writes - _LEASE_COLUMNS
        else:
            _move_chunk(tx, arrow.name, lease)
        _assert_moved(before, row_of(tx, chunks, lease.chunk_id), arrow, writes, _now(tx))


@pytest.mark.parametrize("arrow", ["finish", "release", "requeue", "cancel"])
def test_a_chunk_that_is_given_up_holds_no_lease(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx:
        lease = _insert_chunk(tx, ChunkState.RUNNING, lease_left_s=-1.0)
        _move_chunk(tx, arrow, lease)
        row = row_of(tx, chunks, lease.chunk_id)
    assert {row[name] for name in _LEASE_COLUMNS} == {None}


def test_a_claim_counts_the_attempt_and_says_what_is_leased(shared_database: Database) -> None:
    with shared_database.write() as tx:
        chunk = _insert_chunk(tx, ChunkState.QUEUED)
        worker_id = _insert_worker(tx, WorkerState.READY)
        lease = transitions.claim_chunk(tx, chunk.chunk_id, worker_id, 300.0)
        row, now = row_of(tx, chunks, chunk.chunk_id), _now(tx)
    assert lease == Lease(row["lease_id"], chunk.chunk_id, chunk.job_id, 0, 3, 2)
    assert lease.lease_id != chunk.lease_id
    assert (row["attempt"], row["worker_id"]) == (2, worker_id)
    assert row["lease_until"] == pytest.approx(now + 300.0, abs=60)


@pytest.mark.parametrize(("arrow", "attempt"), [("release", 0), ("requeue", 1)])
def test_an_attempt_counts_unless_the_worker_gave_the_chunk_back(
    shared_database: Database, arrow: str, attempt: int
) -> None:
    with shared_database.write() as tx:
        lease = _insert_chunk(tx, ChunkState.RUNNING, lease_left_s=-1.0)
        _move_chunk(tx, arrow, lease)
        assert row_of(tx, chunks, lease.chunk_id)["attempt"] == attempt


@pytest.mark.parametrize("arrow", CHUNK_ARROWS)
def test_a_chunk_that_is_missing_is_not_found(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx, pytest.raises(NotFoundError, match="no chunk 999999"):
        _move_chunk(tx, arrow, Lease("l" * 32, 999_999, "job_missing", 0, 3, 1))


@pytest.mark.parametrize("arrow", ["finish", "release", "requeue", "cancel"])
def test_a_running_chunk_does_not_move_under_another_lease(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx:
        lease = _insert_chunk(tx, ChunkState.RUNNING, lease_left_s=-1.0)
        before = row_of(tx, chunks, lease.chunk_id)
        other = Lease("o" * 32, lease.chunk_id, lease.job_id, 0, 3, 1)
        with pytest.raises(LeaseLostError):
            _move_chunk(tx, arrow, other)
        assert row_of(tx, chunks, lease.chunk_id) == before


def test_a_chunk_is_not_requeued_before_its_lease_is_over(shared_database: Database) -> None:
    with shared_database.write() as tx:
        lease = _insert_chunk(tx, ChunkState.RUNNING, lease_left_s=60.0)
        before = row_of(tx, chunks, lease.chunk_id)
        with pytest.raises(LeaseLostError):
            transitions.requeue_chunk(tx, lease)
        assert row_of(tx, chunks, lease.chunk_id) == before


def test_a_queued_chunk_is_not_cancelled_under_the_lease_it_had(shared_database: Database) -> None:
    with shared_database.write() as tx:
        lease = _insert_chunk(tx, ChunkState.QUEUED)
        before = row_of(tx, chunks, lease.chunk_id)
        with pytest.raises(LeaseLostError):
            transitions.cancel_chunk(tx, lease)
        assert row_of(tx, chunks, lease.chunk_id) == before


@pytest.mark.parametrize("state", [ChunkState.RUNNING, ChunkState.DONE, ChunkState.CANCELLED])
def test_cancelling_a_job_leaves_alone_what_is_not_queued(
    shared_database: Database, state: ChunkState
) -> None:
    with shared_database.write() as tx:
        lease = _insert_chunk(tx, state)
        before = row_of(tx, chunks, lease.chunk_id)
        transitions.cancel_job(tx, lease.job_id)
        assert row_of(tx, chunks, lease.chunk_id) == before


def test_cancelling_a_job_leaves_other_jobs_alone(shared_database: Database) -> None:
    with shared_database.write() as tx:
        lease, other = _insert_chunk(tx, ChunkState.QUEUED), _insert_chunk(tx, ChunkState.QUEUED)
        before = row_of(tx, chunks, other.chunk_id)
        transitions.cancel_job(tx, lease.job_id)
        assert row_of(tx, chunks, other.chunk_id) == before


# --- workers --------------------------------------------------------------------------------------------------


def _insert_worker(tx: Connection, state: WorkerState, *, silent_s: float = 1_000.0) -> str:
    worker_id = uuid.uuid4().hex
    tx.execute(
        insert(workers).values(
            id=worker_id,
            state=state,
            card_name="tiny",
            engine="echo",
            host="host",
            pid=1,
            started_at=now_s() - 2_000.0,
            heartbeat_at=now_s() - silent_s,
        )
    )
    return worker_id


def _move_worker(tx: Connection, arrow: str, worker_id: str) -> None:
    if arrow == "lose":
        transitions.lose_worker(tx, worker_id, 500.0)
    else:
        getattr(transitions, f"{arrow}_worker")(tx, worker_id)


@pytest.mark.parametrize(("arrow", "state"), _pairs(WORKER_ARROWS, WorkerState))
def test_a_worker_moves_along_its_arrows_only(
    shared_database: Database, arrow: Arrow[WorkerState], state: WorkerState
) -> None:
    with shared_database.write() as tx:
        worker_id = _insert_worker(tx, state)
        if state not in arrow.sources:
            _assert_refused(tx, workers, worker_id, arrow, lambda: _move_worker(tx, arrow.name, worker_id))
            return
        before = row_of(tx, workers, worker_id)
        _move_worker(tx, arrow.name, worker_id)
        _assert_moved(before, row_of(tx, workers, worker_id), arrow, _WORKER_WRITES[arrow.name], _now(tx))


@pytest.mark.parametrize("arrow", WORKER_ARROWS)
def test_a_worker_that_is_missing_is_not_found(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx, pytest.raises(NotFoundError, match="no worker w_missing"):
        _move_worker(tx, arrow, "w_missing")


def test_a_worker_that_spoke_of_late_is_not_lost(shared_database: Database) -> None:
    with shared_database.write() as tx:
        worker_id = _insert_worker(tx, WorkerState.READY, silent_s=400.0)
        before = row_of(tx, workers, worker_id)
        with pytest.raises(LeaseLostError):
            transitions.lose_worker(tx, worker_id, 500.0)
        assert row_of(tx, workers, worker_id) == before


# --- the table ------------------------------------------------------------------------------------------------


def test_each_arrow_is_a_function_and_each_function_an_arrow() -> None:
    arrows = {
        f"{name}_{thing}"
        for thing, table in (("job", JOB_ARROWS), ("chunk", CHUNK_ARROWS), ("worker", WORKER_ARROWS))
        for name in table
    }
    functions = {
        name
        for name, function in inspect.getmembers(transitions, inspect.isfunction)
        if function.__module__ == transitions.__name__ and not name.startswith("_")
    }
    assert functions - _NO_ARROWS == arrows
    assert functions >= _NO_ARROWS


def test_each_arrow_says_what_it_writes() -> None:
    assert _JOB_WRITES.keys() == JOB_ARROWS.keys()
    assert _CHUNK_WRITES.keys() == CHUNK_ARROWS.keys()
    assert _WORKER_WRITES.keys() == WORKER_ARROWS.keys()


def test_no_arrow_leaves_a_state_that_is_over() -> None:
    over = {
        JobState.COMPLETED,
        JobState.CANCELLED,
        ChunkState.DONE,
        ChunkState.CANCELLED,
        WorkerState.STOPPED,
    }
    tables: list[Mapping[str, Arrow[Any]]] = [JOB_ARROWS, CHUNK_ARROWS, WORKER_ARROWS]
    for table in tables:
        for arrow in table.values():
            assert not arrow.sources & over, arrow.name


def test_nobody_but_transitions_updates_a_state() -> None:
    """A row may be born in a state elsewhere (submits); `.values(state=...)` is how one is changed."""
    folder = Path(transitions.__file__).parent
    writers = {
        path.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "values"
        and any(keyword.arg == "state" for keyword in node.keywords)
    }
    assert writers == {"transitions.py"}
