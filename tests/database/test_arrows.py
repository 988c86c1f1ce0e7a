"""Every state moves along its arrows and no other way: each (arrow x state) pair, on both databases."""

import ast
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from database.raw_rows import (
    LEASE_COLUMNS,
    clock,
    insert_chunk,
    insert_job,
    insert_worker,
    move_chunk,
    move_job,
    move_worker,
)
from database.rows import row_of
from sqlalchemy import Connection, Table

from db import transitions
from db.database import Database
from db.errors import WrongStateError
from db.states import (
    CHUNK_ARROWS,
    JOB_ARROWS,
    WORKER_ARROWS,
    Arrow,
    ChunkState,
    JobState,
    WorkerState,
)
from db.tables import chunks, jobs, workers

# What each arrow writes beside the state, and nothing more.
_JOB_WRITES: dict[str, set[str]] = {
    "enqueue": {"num_requests", "num_failed", "input_sha256", "idempotency_key", "submit_lease_until"},
    "start": {"started_at"},
    "complete": {"finished_at"},
    "cancel": set(),
    "end_cancel": {"finished_at"},
    "expire": {"finished_at"},
    "abandon": {"submit_lease_until"},
    "delete": {"finished_at", "idempotency_key"},
    # and the sums, by what is taken back
    "retry": {"finished_at", "deadline_at"},
}
_JOB_CLEARS: dict[str, set[str]] = {
    "enqueue": {"submit_lease_until"},
    "abandon": {"submit_lease_until"},
    "delete": {"finished_at", "idempotency_key"},
    "retry": {"finished_at", "deadline_at"},
}
_CHUNK_WRITES: dict[str, set[str]] = {
    "claim": {*LEASE_COLUMNS, "attempt", "started_at"},
    "finish": {*LEASE_COLUMNS, "finished_at"},
    "release": {*LEASE_COLUMNS, "attempt"},
    "requeue": LEASE_COLUMNS,
    # the range and the counts become those of the first part
    "split": {*LEASE_COLUMNS, "is_suspect", "num_requests", "num_succeeded"},
    "drop": LEASE_COLUMNS,
    # the count is lowered by what is taken back
    "retry": {"attempt", "num_succeeded"},
}
# What moves all chunks of a job at once, by its arrow of chunks: no chunk moves along it alone, and it has no function
# of its own.
_IN_BULK: dict[str, Callable[[Connection, str], None]] = {"drop": transitions.expire_job}
_ALONE = {name: arrow for name, arrow in CHUNK_ARROWS.items() if name not in _IN_BULK}
_WORKER_WRITES: dict[str, set[str]] = {
    "ready": {"heartbeat_at"},
    "drain": {"heartbeat_at"},
    "stop": {"heartbeat_at"},
    "lose": set(),
}
# Functions of `transitions` that are no arrow: births, erasure, locks, sums, and what a holder does to its lease.
_NO_ARROWS = {
    "stage_job",
    "register_worker",
    "renew_submit",
    "lock_job",
    "lock_chunks",
    "close_job_if_over",
    "erase_rows",
    "erase_job",
    "lease_of",
    "isolate_chunk",
    "count_results",
    "uncount_results",
    "take_back",
    "record_chunk",
}


def _pairs(arrows: Mapping[str, Arrow[Any]], states: Iterable[StrEnum]) -> list[Any]:
    return [
        pytest.param(arrow, state, id=f"{arrow.name}-{state}")
        for arrow in arrows.values()
        for state in states
    ]


def _assert_moved(
    before: dict[str, Any],
    after: dict[str, Any],
    arrow: Arrow[Any],
    writes: set[str],
    now: float,
    clears: Collection[str] = (),
) -> None:
    assert after["state"] == arrow.target
    changed = {name for name in after if after[name] != before[name]}
    assert changed - {"state"} == writes
    for name in clears:
        assert after[name] is None, name
    for name in (writes & {"started_at", "finished_at", "heartbeat_at"}).difference(clears):
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


@pytest.mark.parametrize(("arrow", "state"), _pairs(JOB_ARROWS, JobState))
def test_a_job_moves_along_its_arrows_only(
    shared_database: Database, arrow: Arrow[JobState], state: JobState
) -> None:
    with shared_database.write() as tx:
        job_id = insert_job(tx, state)
        if state not in arrow.sources:
            _assert_refused(tx, jobs, job_id, arrow, lambda: move_job(tx, arrow.name, job_id))
            return
        before = row_of(tx, jobs, job_id)
        move_job(tx, arrow.name, job_id)
        after, clears = row_of(tx, jobs, job_id), _JOB_CLEARS.get(arrow.name, ())
        _assert_moved(before, after, arrow, _JOB_WRITES[arrow.name], clock(tx), clears)


@pytest.mark.parametrize(("arrow", "state"), _pairs(_ALONE, ChunkState))
def test_a_chunk_moves_along_its_arrows_only(
    shared_database: Database, arrow: Arrow[ChunkState], state: ChunkState
) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, state)
        if state not in arrow.sources:
            _assert_refused(tx, chunks, lease.chunk_id, arrow, lambda: move_chunk(tx, arrow.name, lease))
            return
        before = row_of(tx, chunks, lease.chunk_id)
        move_chunk(tx, arrow.name, lease)
        after, clears = row_of(tx, chunks, lease.chunk_id), () if arrow.name == "claim" else LEASE_COLUMNS
        _assert_moved(before, after, arrow, _CHUNK_WRITES[arrow.name], clock(tx), clears)


@pytest.mark.parametrize(
    ("arrow", "state"), _pairs({name: CHUNK_ARROWS[name] for name in _IN_BULK}, ChunkState)
)
def test_a_job_that_ends_takes_along_the_chunks_of_its_arrow_only(
    shared_database: Database, arrow: Arrow[ChunkState], state: ChunkState
) -> None:
    with shared_database.write() as tx:
        lease, other = insert_chunk(tx, state), insert_chunk(tx, state)
        before, other_before = row_of(tx, chunks, lease.chunk_id), row_of(tx, chunks, other.chunk_id)
        _IN_BULK[arrow.name](tx, lease.job_id)
        after = row_of(tx, chunks, lease.chunk_id)
        # another job's is never touched
        assert row_of(tx, chunks, other.chunk_id) == other_before
        if state not in arrow.sources:
            assert after == before
            return
        _assert_moved(before, after, arrow, _CHUNK_WRITES[arrow.name], clock(tx), LEASE_COLUMNS)


@pytest.mark.parametrize(("arrow", "state"), _pairs(WORKER_ARROWS, WorkerState))
def test_a_worker_moves_along_its_arrows_only(
    shared_database: Database, arrow: Arrow[WorkerState], state: WorkerState
) -> None:
    with shared_database.write() as tx:
        worker_id = insert_worker(tx, state)
        if state not in arrow.sources:
            _assert_refused(tx, workers, worker_id, arrow, lambda: move_worker(tx, arrow.name, worker_id))
            return
        before = row_of(tx, workers, worker_id)
        move_worker(tx, arrow.name, worker_id)
        _assert_moved(before, row_of(tx, workers, worker_id), arrow, _WORKER_WRITES[arrow.name], clock(tx))


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
    assert functions - _NO_ARROWS == arrows - {f"{name}_chunk" for name in _IN_BULK}
    assert functions >= _NO_ARROWS


def test_each_arrow_in_bulk_is_in_the_function_of_its_job() -> None:
    for name, function in inspect.getmembers(transitions, inspect.isfunction):
        if function.__module__ == transitions.__name__ and name.endswith("_job"):
            named = {
                arrow for arrow in CHUNK_ARROWS if f'CHUNK_ARROWS["{arrow}"]' in inspect.getsource(function)
            }
            assert named == {arrow for arrow, bulk in _IN_BULK.items() if bulk is function}, name


def test_each_arrow_says_what_it_writes() -> None:
    assert _JOB_WRITES.keys() == JOB_ARROWS.keys()
    assert _CHUNK_WRITES.keys() == CHUNK_ARROWS.keys()
    assert _WORKER_WRITES.keys() == WORKER_ARROWS.keys()


def test_no_arrow_leaves_a_state_that_is_over() -> None:
    """A job that is over can still be deleted, and come back by a retry alone: completed, with chunks that are done."""
    over = {
        JobState.COMPLETED,
        JobState.CANCELLED,
        JobState.EXPIRED,
        JobState.DELETING,
        ChunkState.DONE,
        WorkerState.STOPPED,
    }
    assert JOB_ARROWS["delete"].sources == {state for state in JobState if state.is_final}
    assert JOB_ARROWS["retry"].sources == {JobState.COMPLETED}
    assert CHUNK_ARROWS["retry"].sources == {ChunkState.DONE}
    leaving = (JOB_ARROWS["delete"], JOB_ARROWS["retry"], CHUNK_ARROWS["retry"])
    tables: list[Mapping[str, Arrow[Any]]] = [JOB_ARROWS, CHUNK_ARROWS, WORKER_ARROWS]
    for table in tables:
        for arrow in table.values():
            assert any(arrow is one for one in leaving) or not arrow.sources & over, arrow.name


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
